"""By what a piece of the evidence was made: command, commit, device, versions, and what is to be known of its data."""

import json
import platform
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmark import commit

from hf_gdd import ImageTensors

# What a copy of the data differs in from the original, by the fingerprint of its training images.
CAVEATS = {
    "909d9cd87a30b2f072f6591ca29be10ae6bfa751b836b0aa939ad2de0f3f0ab4": (
        "CIFAR-10 here is a copy that went through JPEG (quality about 75), for training and test alike."
    )
}


def now() -> dict[str, Any]:
    """By what a piece was made: of places on this machine only their names."""
    cpu = f"CPU {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    words = [re.sub(r"(^|=)(?:/|\.\./).*/(?=.)", r"\1", word) for word in sys.argv[1:]]
    packages = ("hf_gdd", "torch", "datasets", "diffusers", "accelerate", "numpy")
    return {
        "command": shlex.join(["python", "scripts/reproduce.py", *words]),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def calls(path: Path) -> list[dict[str, Any]]:
    """The calls that worked on a piece, written down in `path`: the first, and every later one that differs."""
    told = json.loads(path.read_text()) if path.is_file() else []
    if (call := now()) not in told[-1:]:
        write(path, told := [*told, call])
    return told


def caveats(train: ImageTensors) -> list[str]:
    """What is to be known of this copy of the data."""
    return [CAVEATS[train.fingerprint]] if train.fingerprint in CAVEATS else []


def write(path: Path, found: Any) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)
