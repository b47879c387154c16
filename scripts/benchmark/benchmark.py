"""Measure the throughput of every hot path beside a plain reference, and how cost grows.

    python scripts/benchmark/benchmark.py                               # the published sizes, on a CPU or a GPU
    python scripts/benchmark/benchmark.py --growth --out growth.json    # cost when one quantity at a time doubles
    python scripts/benchmark/page.py                                    # write docs/benchmark.md from the stored JSON

page.py says how to read the tables.
"""

import ctypes
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Annotated, Any, Literal

import torch
import tyro
from hot_paths import PATHS, HotPaths, count_flops
from page import PRECISIONS, tables

from hf_gdd.utils.device import keep_freed_memory
from hf_gdd.utils.io import write_json

DESCRIBE = "git describe --always --dirty --abbrev=40 --exclude='*'"
WORKERS = (0, 2, 4, 8)  # of the reference's loaders, as far as there are cores; the fastest is taken
# Settings that a path is measured with, one row each.
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "gan": [("paper", {}), ("fast", {"preset": "fast"})],
    "match": [("paper", {}), ("fast", {"preset": "fast"})],
}
SEVERAL_PRECISIONS = ("gan", "match", "diffusion", "prediction", "evaluate")
# The quantity that is multiplied, the path, and the factor.
GROWTH = [
    *(("rows", path, 2) for path in ("gan", "diffusion")),
    *(("classes", path, 2) for path in ("gan", "diffusion")),
    *(("width", path, 2) for path in ("gan", "diffusion")),
    ("batch", "gan", 2),
    *(("ipc", path, 2) for path in ("prediction", "materialize", "stream", "evaluate")),
    ("n", "evaluate", 2),
]


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
    """Return the time of a step with this many loader workers, which end with this function."""
    step = reference(count)
    step()
    return seconds(step, device)


# The call that this process measures, by the folder of its runs, with its device and the calls in one timing.
SIDES: dict[str, tuple[Callable[[], Any], torch.device, int]] = {}


def begin(folder: str, settings: dict[str, Any], path: str, ours: tuple[dict[str, Any], str] | None) -> dict[str, Any]:
    """Build, count and warm up one side of a path: ours with these settings and precision, or the reference."""
    torch.set_num_threads(settings["threads"])
    paths = HotPaths(settings["size"], folder)
    case, device, tried = getattr(paths, path)(), paths.device, {}
    if ours is None and case.loads:
        tried = {c: worker_seconds(case.reference, c, device) for c in WORKERS if c <= (os.cpu_count() or 1)}
    best = min(tried, key=tried.get, default=0)
    call = case.reference(best) if ours is None else case.ours(*ours)
    if ours is None:
        restore_malloc()
    cycle = getattr(call, "cycle", 1)
    flops = sum(count_flops(call) for _ in range(cycle)) / cycle
    times = math.ceil(settings["least"] / max(seconds(call, device, cycle), 1e-9))  # which also warms up
    times = math.ceil(max(times, 1) / cycle) * cycle
    SIDES[folder] = call, device, times
    return {
        "flops": flops,
        "times": times,
        "images": case.images,
        "predicted_flops": case.predicted,
        "workers": best if case.loads else None,
        "worker_seconds": tried,
    }


def restore_malloc() -> None:
    """Undo `keep_freed_memory`, which building a trainer called: set the largest thresholds glibc takes by itself."""
    if keep_freed_memory():
        for option, most in ((-3, 2**25), (-1, 2**26)):  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, most)


def turn(folder: str) -> float:
    """Return the seconds of one call of a side that has begun."""
    return seconds(*SIDES[folder])


@contextmanager
def process() -> Iterator[Callable[..., Any]]:
    """Start a process; yields a function that runs functions in it and waits for their results."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def measure(settings: dict[str, Any], path: str, precisions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure one path: yields a row for every variant in every precision, each beside the reference.

    The processes are separate because the library sets how a whole process keeps memory, which would help the
    reference too. Only one of them works at a time.
    """
    several = precisions if path in SEVERAL_PRECISIONS else precisions[:1]
    labels = [(label, how, extra) for label, extra in VARIANTS.get(path, [("", {})]) for how in several]
    sides = [None, *((extra, how) for _, how, extra in labels)]  # the reference is the first
    with TemporaryDirectory() as folder, ExitStack() as stack:
        ask = [stack.enter_context(process()) for _ in sides]
        folders = [mkdtemp(dir=folder) for _ in sides]
        facts = [call(begin, own, settings, path, side) for call, own, side in zip(ask, folders, sides, strict=True)]
        turns = [[call(turn, own) for call, own in zip(ask, folders, strict=True)] for _ in range(settings["repeats"])]
    (plain, *ours), (plain_seconds, *our_seconds) = facts, map(list, zip(*turns, strict=True))
    shared = {name: plain[name] for name in ("images", "workers", "worker_seconds", "predicted_flops")}
    shared |= {"path": path, "reference_flops": plain["flops"], "reference_seconds": plain_seconds}
    for (label, how, _), fact, each in zip(labels, ours, our_seconds, strict=True):
        row = {"variant": label, "precision": how, "seconds": each, "flops": fact["flops"], "times": fact["times"]}
        yield shared | row


def point(settings: dict[str, Any], path: str, factors: dict[str, int]) -> dict[str, Any]:
    """Measure a call of ours; to be run in a fresh process, whose peak memory is all it ever used."""
    torch.set_num_threads(settings["threads"])
    with TemporaryDirectory() as folder:
        paths = HotPaths(settings["size"], folder, **factors)
        case = getattr(paths, path)()
        call = case.ours({}, "no")
        call()
        taken = [seconds(call, paths.device) for _ in range(settings["repeats"])]
        on_gpu = paths.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(paths.device) if on_gpu else highest_memory()
        return {"seconds": taken, "peak_bytes": peak, "rest_bytes": case.rest, "predicted_flops": case.predicted}


def highest_memory() -> int:
    """Return the peak memory of this process on Linux; ru_maxrss would count what its parent used when it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def growth(settings: dict[str, Any], paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure each path as it is, and with one quantity larger."""
    for what, path, factor in GROWTH:
        if path in paths:
            row = {"what": what, "path": path, "factor": factor}
            for name, factors in (("base", {}), ("grown", {what: factor})):
                with process() as ask:
                    row[name] = ask(point, settings, path, factors)
            yield row


def circumstances(settings: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the numbers depend on; folders appear by their last name only."""
    cpu = f"CPU {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    words = [re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv[1:]]
    packages = ("hf_gdd", "torch", "datasets", "diffusers", "accelerate", "numpy", "pillow")
    git = subprocess.run(DESCRIBE, shell=True, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return {
        "command": shlex.join(["python", "scripts/benchmark/benchmark.py", *words]),
        "settings": settings,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": git.stdout.strip() or None,
        "paths": [],
        "growth": [],
    }


def main(
    paths: str = ",".join(PATHS),
    size: Literal["paper", "lite", "tiny"] = "paper",
    precision: str = "no",
    repeats: int = 5,
    least: float = 1.0,
    threads: int | None = None,
    growing: Annotated[bool, tyro.conf.arg(name="growth")] = False,
    out: Path = Path("benchmark.json"),
) -> None:
    """Measure, write everything to a file and print it as tables.

    Args:
        paths: paths to measure, separated by commas.
        size: sizes of networks and batches.
        precision: precisions of ours, `no` or `no,bf16`; the reference is always in float32.
        repeats: how often ours and the reference take turns.
        least: shortest time of one measurement in seconds.
        threads: threads of torch.
        growing: measure how cost grows instead.
        out: JSON file to write.

    """
    chosen, precisions = paths.split(","), precision.split(",")
    if unknown := {*chosen} - {*PATHS} | {*precisions} - {*PRECISIONS}:
        raise SystemExit(f"Unknown {', '.join(sorted(unknown))}: choose of {', '.join(PATHS)}; of no, bf16.")
    settings = {"size": size, "repeats": repeats, "least": least, "threads": threads or torch.get_num_threads()}
    record = circumstances(settings)
    rows = growth(settings, chosen) if growing else (row for p in chosen for row in measure(settings, p, precisions))
    for row in rows:
        record["growth" if growing else "paths"].append(row)
        write_json(out, record, indent=1)  # a run that is stopped keeps what it measured
    print(tables(record))


if __name__ == "__main__":
    tyro.cli(main)
