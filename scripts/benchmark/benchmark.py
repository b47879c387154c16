"""Measure the throughput of every hot path beside a plain reference.

This page is written by `python scripts/benchmark/benchmark.py --page` from `scripts/benchmark/benchmark.json`. Without
`--page` the script measures, on a CPU or a GPU, and writes such a file.

The reference (`plain_reference.py`) does what the papers' public code does: a `DataLoader` over PIL images with the
number of workers that is fastest, float32 and NCHW, gradients of everything, one network at a time, losses read in
every step. The library's side is what `fit`, `evaluate` and `load_distilled_dataset` run. Both do the same work on as
many threads, by turns, each in a process of its own. `plain / ours` is the median over turns, with the smallest and the
largest ratio in brackets; other runs have other medians.

The images are the bundled digits, enlarged and repeated: the cost of a step depends on their shape alone. In
`materialize` and `stream` the reference is the bare forward pass, in a process that returns freed memory to the system,
so ours can be faster.

The last line names the commit that was measured. At 6be0b91 a training chose the layout of convolutions by timing, and
computed their weight gradients as matrix products. The first is now the setting `channels_last`, the second is gone.
"""

import ctypes
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro
from hot_paths import PATHS, HotPaths, PathName

from hf_gdd.report import markdown_table
from hf_gdd.utils.device import keep_freed_memory
from hf_gdd.utils.io import write_json, write_text

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmark.md"
DESCRIBE = "git describe --always --dirty --abbrev=40 --exclude='*'"
WORKERS = (0, 2, 4, 8)  # of the reference's loaders, as far as there are cores; the fastest is taken
PRESETS = {"gan": ("paper", "fast"), "match": ("paper", "fast")}  # of ours, one row each; other paths have one row
LEAST = 1.0  # seconds of one measurement, which repeats shorter calls
PRECISIONS = {"no": "fp32", "bf16": "bf16"}


def seconds(call: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Return the mean time of one call, with the device's work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - started) / times


def worker_seconds(reference: Callable[[int], Callable[[], Any]], count: int, device: torch.device) -> float:
    """Return the seconds of a step with this many loader workers.

    The workers end with this function.
    """
    step = reference(count)
    step()
    return seconds(step, device)


# The call that this process measures, by the folder of its runs, with its device and the calls in one timing.
SIDES: dict[str, tuple[Callable[[], Any], torch.device, int]] = {}


def begin(folder: str, settings: dict[str, Any], path: str, ours: dict[str, Any] | None) -> dict[str, Any]:
    """Build and warm up one side of a path: ours, or the reference."""
    paths = HotPaths(settings["size"], folder)
    case, device, tried = getattr(paths, path)(), paths.device, {}
    if ours is None and case.loads:
        tried = {c: worker_seconds(case.reference, c, device) for c in WORKERS if c <= (os.cpu_count() or 1)}
    best = min(tried, key=tried.get, default=0)
    call = case.reference(best) if ours is None else case.ours(ours)
    if ours is None:
        restore_malloc()
    cycle = getattr(call, "cycle", 1)
    times = math.ceil(LEAST / max(seconds(call, device, cycle), 1e-9))  # which also warms up
    times = math.ceil(max(times, 1) / cycle) * cycle
    SIDES[folder] = call, device, times
    return {"images": case.images, "workers": best if case.loads else None, "worker_seconds": tried}


def restore_malloc() -> None:
    """Undo `keep_freed_memory`, which building a trainer called.

    It sets the largest thresholds that glibc takes by itself.
    """
    if keep_freed_memory(torch.device("cpu")):
        for option, most in ((-3, 2**25), (-1, 2**26)):  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, most)


def turn(folder: str) -> float:
    """Return the seconds of one call of a side that has begun."""
    return seconds(*SIDES[folder])


@contextmanager
def process() -> Iterator[Callable[..., Any]]:
    """Start a process; yields a function that runs functions in it.

    It waits for their results.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def measure(settings: dict[str, Any], path: str, preset: str) -> dict[str, Any]:
    """Measure one path with a preset of ours, beside the reference, by turns.

    The processes are separate because the library sets how a whole process keeps memory, which would help the
    reference too. Only one of them works at a time.
    """
    precision = "no" if path in ("materialize", "stream") else settings["precision"]  # which only sample
    row = {"path": path, "variant": preset if path in PRESETS else "", "precision": precision}
    with TemporaryDirectory() as plain, TemporaryDirectory() as ours, process() as ask_plain, process() as ask_ours:
        row |= ask_plain(begin, plain, settings, path, None)
        ask_ours(begin, ours, settings, path, {"preset": preset, "mixed_precision": precision})
        turns = [(ask_plain(turn, plain), ask_ours(turn, ours)) for _ in range(settings["repeats"])]
    row["reference_seconds"], row["seconds"] = map(list, zip(*turns, strict=True))
    return row


def circumstances(settings: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the numbers depend on.

    Folders appear by their last name only.
    """
    cpu = f"CPU {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    words = [re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv[1:]]
    packages = ("hf_gdd", "torch", "datasets", "diffusers", "accelerate", "numpy", "pillow")
    git = subprocess.run(DESCRIBE, shell=True, capture_output=True, text=True, cwd=HERE, check=False)
    return {
        "command": shlex.join(["python", "scripts/benchmark/benchmark.py", *words]),
        "settings": settings,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": git.stdout.strip() or None,
        "paths": [],
    }


def table(record: dict[str, Any]) -> str:
    """Return a row for every path and preset, and the circumstances.

    Earlier versions recorded more than is shown.
    """
    header, rows = ["path", "settings", "images", "plain s", "ours s", "plain / ours", "plain img/s", "ours img/s"], []
    for row in record["paths"]:
        ours, plain = statistics.median(row["seconds"]), statistics.median(row["reference_seconds"])
        ratios = [a / b for a, b in zip(row["reference_seconds"], row["seconds"], strict=True)]
        label = f"{row['variant']} {PRECISIONS[row['precision']]}".strip()
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        speeds = [f"{row['images'] / x:,.0f}" for x in (plain, ours)]
        workers = "-" if row["workers"] is None else str(row["workers"])
        rows.append([row["path"], label, f"{row['images']:,}", f"{plain:.3g}", f"{ours:.3g}", ratio, *speeds, workers])
    settings, versions = record["settings"], record["versions"]
    name, dash, changed = (record["commit"] or "unknown").partition("-")
    facts = f"{record['device']}, {settings['threads']} threads; size {settings['size']}; {settings['repeats']} repeats"
    facts += f"; torch {versions['torch']}, hf_gdd {versions['hf_gdd']}. Measured by `{record['command']}`"
    return f"{markdown_table([*header, 'workers'], rows)}\n\n{facts} at commit {name[:7]}{dash}{changed}."


def render_page() -> str:
    """Return the page of the stored measurement, under the description of this script."""
    _, description = __doc__.split("\n\n", 1)
    stored = json.loads((HERE / "benchmark.json").read_text())
    return f"# Benchmark\n\n{description}\n{table(stored)}\n"


def main(
    paths: tuple[PathName, ...] = PATHS,
    size: Literal["paper", "tiny"] = "paper",
    precision: Literal["no", "bf16"] = "no",
    repeats: int = 5,
    out: Path = Path("benchmark.json"),
    page: bool = False,
) -> None:
    """Measure, write everything to a file and print it as a table.

    Args:
        paths: paths to measure.
        size: sizes of networks and batches; `tiny` only shows that everything runs.
        precision: precision of ours; the reference is always in float32.
        repeats: how often ours and the reference take turns.
        out: JSON file to write.
        page: only write docs/benchmark.md from the stored measurement.

    """
    if page:
        write_text(PAGE, render_page())
        return
    settings = {"size": size, "precision": precision, "repeats": repeats, "threads": torch.get_num_threads()}
    record = circumstances(settings)
    for path in paths:
        for preset in PRESETS.get(path, ("paper",)):
            record["paths"].append(measure(settings, path, preset))
            write_json(out, record, indent=1)  # a run that is stopped keeps what it measured
    print(table(record))


if __name__ == "__main__":
    tyro.cli(main)
