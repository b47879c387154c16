"""`hf-gdd env`: print versions and device, for reports of errors."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from hf_gdd.utils.device import own_device

_PACKAGES = ("hf_gdd", "torch", "diffusers", "datasets", "huggingface_hub", "accelerate", "safetensors", "transformers")


@dataclass(frozen=True)
class Env:
    """Print the versions of Python and of the libraries that matter, and the device.

    Copy the lines into a report of an error.
    """

    def __call__(self) -> None:
        """Print one line for each."""
        lines = {"python": platform.python_version(), "platform": platform.platform()}
        lines |= {name: _version(name) for name in _PACKAGES}
        device = own_device()
        cpu = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
        lines["device"] = f"{torch.cuda.get_device_name(device)}, {device}" if device.type == "cuda" else cpu
        for name, text in lines.items():
            print(f"{name + ':':<17}{text}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
