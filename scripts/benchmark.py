"""Throughput of every hot path beside a plain reference, and how cost grows; on a CPU or a GPU.

    python scripts/benchmark.py                                  # the published sizes
    python scripts/benchmark.py --growth --out growth.json       # cost when one thing at a time doubles
    python scripts/benchmark.py --table benchmark.json           # the tables again, from the file alone

The reference (`plain_reference.py`) does what the papers' public code does: a `DataLoader` over PIL images with the
number of workers that suits it best, float32 and NCHW, gradients of everything, one network at a time, meters read in
every step. Ours is what `fit`, `evaluate` and `load_distilled_dataset` run. Both do the same work on as many threads,
by turns, each in a process of its own; a ratio is of neighbors in time. The images are the bundled digits, enlarged
and repeated: what a step costs depends on the shape of the images, never on what they show. A counted FLOP is one of a
convolution or a matrix product; `predicted` is what the reference's step should take by the textbook: three forward
passes for each that is trained, the gradient penalty six. In `materialize` the reference is the bare forward pass, so
the ratio is its share of our time.
"""

import ctypes
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import statistics
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
from hot_paths import PATHS, SIZES, Bench, counted
from torch import nn

from hf_gdd import ImageTensors
from hf_gdd.utils.device import keep_freed_memory

WORKERS = (0, 2, 4, 8)  # of the reference's loaders, as far as there are cores; the fastest is taken
NAMES = {"no": "fp32", "bf16": "bf16"}
CHOSEN = {"channels_last": "channels last", "products": "weight gradients as matrix products"}
# Settings that a path is measured with, one row each.
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "gan": [("paper", {}), ("fast", {"preset": "fast"})],
    "match": [("paper", {}), ("fast", {"preset": "fast"})],
}
SEVERAL_PRECISIONS = ("gan", "match", "diffusion", "prediction", "evaluate")
# What is multiplied, of which path, and by how much.
GROWTH = [
    ("rows", "gan", 2),
    ("classes", "gan", 2),
    ("width", "gan", 2),
    ("batch", "gan", 2),
    ("rows", "diffusion", 2),
    ("classes", "diffusion", 2),
    ("width", "diffusion", 2),
    ("ipc", "prediction", 2),
    ("ipc", "materialize", 2),
    ("ipc", "stream", 2),
    ("ipc", "evaluate", 2),
    ("n", "evaluate", 2),
]


# Measuring.


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that its time is counted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Of one call, as the mean of several in a row."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - started) / times


def workers() -> list[int]:
    """Numbers that a loader may have here."""
    return [count for count in WORKERS if count <= (os.cpu_count() or 1)]


def worker_seconds(reference: Callable[[int], Callable[[], Any]], count: int, device: torch.device) -> float:
    """Of a step whose loaders have so many workers, which are gone afterwards."""
    step = reference(count)
    step()
    return seconds(step, device)


# What this process measures, by the folder of its runs: a call, where it runs and how often in one timing.
SIDES: dict[str, tuple[Callable[[], Any], torch.device, int]] = {}


def begin(folder: str, settings: dict[str, Any], path: str, ours: tuple[dict[str, Any], str] | None) -> dict[str, Any]:
    """Build, count and warm up one side of a path: ours with these settings and precision, or the reference."""
    bench = bench_in(folder, settings)
    case, device, tried = getattr(bench, path)(), bench.device, {}
    if ours is None and case.loads:
        tried = {count: worker_seconds(case.reference, count, device) for count in workers()}
    best = min(tried, key=tried.get, default=0)
    call = case.reference(best) if ours is None else case.ours(*ours)
    if ours is None:
        memory_as_usual()
    group = getattr(call, "cycle", 1)
    flops = sum(counted(call) for _ in range(group)) / group
    wanted = math.ceil(settings["least"] / max(seconds(call, device, group), 1e-9))  # also the warm-up
    times = math.ceil(max(wanted, 1) / group) * group  # whole cycles of what is not done in every step
    told = {"flops": flops, "times": times, "peak_bytes": peak_memory(call, device, group)}
    told |= {"images": case.images, "predicted_flops": case.predicted, "arithmetic": chosen_by(call)}
    SIDES[folder] = call, device, times
    return told | {"workers": best if case.loads else None, "worker_seconds": tried}


def memory_as_usual() -> None:
    """Undo `keep_freed_memory`, which building a trainer has called: to what glibc adjusts itself to at most."""
    if keep_freed_memory():
        for option, most in ((-3, 2**25), (-1, 2**26)):  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, most)


def turn(folder: str) -> float:
    """Seconds of one call of a side that has begun."""
    return seconds(*SIDES[folder])


def loaders_begin_by(method: str) -> None:
    """What is usual here: a spawned process would spawn its loaders' workers too, which takes seconds for each."""
    multiprocessing.set_start_method(method, force=True)


@contextmanager
def process() -> Iterator[Callable[..., Any]]:
    """Runs functions in a process of its own, which stays until the end, and waits for each."""
    with ProcessPoolExecutor(1, get_context("spawn"), loaders_begin_by, (multiprocessing.get_start_method(),)) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def measure(settings: dict[str, Any], path: str, precisions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one path: every variant in every precision, and the reference, by turns.

    Each has a process of its own: what the library sets for a whole process, such as how memory is kept, would help
    the reference too. Only one of them works at any time.
    """
    several = precisions if path in SEVERAL_PRECISIONS else precisions[:1]
    labels = [(label, how, extra) for label, extra in VARIANTS.get(path, [("", {})]) for how in several]
    sides = [None, *((extra, how) for _, how, extra in labels)]  # the reference is the first
    with TemporaryDirectory() as folder, ExitStack() as stack:
        asks = [stack.enter_context(process()) for _ in sides]
        folders = [mkdtemp(dir=folder) for _ in sides]
        told = [ask(begin, own, settings, path, side) for ask, own, side in zip(asks, folders, sides, strict=True)]
        rounds = [[ask(turn, own) for ask, own in zip(asks, folders, strict=True)] for _ in range(settings["repeats"])]
    taken = [list(each) for each in zip(*rounds, strict=True)]
    plain = told[0]
    shared = {"path": path, "images": plain["images"], "workers": plain["workers"]}
    shared |= {"worker_seconds": plain["worker_seconds"], "reference_flops": plain["flops"]}
    shared |= {"predicted_flops": plain["predicted_flops"], "reference_seconds": taken[0]}
    shared |= {"reference_peak_bytes": plain["peak_bytes"], "reference_times": plain["times"]}
    for (label, how, _), ours, each in zip(labels, told[1:], taken[1:], strict=True):
        yield shared | {
            "variant": label,
            "precision": how,
            "arithmetic": ours["arithmetic"],
            "seconds": each,
            "flops": ours["flops"],
            "peak_bytes": ours["peak_bytes"],
            "times": ours["times"],
        }


def chosen_by(call: Callable[[], Any]) -> dict[str, Any]:
    """What a training chose to compute in, if it is one."""
    trainer = getattr(call, "trainer", None)
    return trainer.arithmetic.state_dict() if trainer else {}


def peak_memory(call: Callable[[], Any], device: torch.device, times: int) -> int | None:
    """What a call, or one of several, needs of a GPU's memory beside what rests there."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for _ in range(times):
        call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@torch.no_grad()
def peak_speed(device: torch.device, precision: str) -> dict[str, float]:
    """GFLOP a second of what these networks are made of, at its best: the better layout is what is reached."""
    kind, on_gpu = torch.bfloat16 if precision == "bf16" else torch.float32, device.type == "cuda"
    batch, side = (512, 8192) if on_gpu else (8, 1024)
    found: dict[str, float] = {}
    for channels in (128, 196):
        for name, layout in (("NCHW", torch.contiguous_format), ("channels last", torch.channels_last)):
            convolution = nn.Conv2d(channels, channels, 3, padding=1).to(device, kind, memory_format=layout)
            images = torch.randn(batch, channels, 28, 28).to(device, kind, memory_format=layout)
            found[f"convolution {channels}, {name}"] = speed(convolution, images)
    matrix = torch.randn(side, side).to(device, kind)
    return found | {"matrix product": speed(torch.matmul, matrix, matrix)}


def speed(call: Callable[..., Any], *args: torch.Tensor) -> float:
    """The best of five in GFLOP a second, of fewer where bf16 is emulated."""
    flops, device, least = counted(call, *args), args[0].device, math.inf
    until = time.perf_counter() + 3
    for _ in range(5):
        least = min(least, seconds(lambda: call(*args), device, 20 if device.type == "cuda" else 1))
        if time.perf_counter() > until:
            break
    return flops / least / 1e9


def bench_in(folder: str, settings: dict[str, Any], **factors: int) -> Bench:
    """A bench with its runs in this folder."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    size, data, side = (settings[name] for name in ("size", "data", "image_size"))
    enlarged = data == "digits"
    side = side or (SIZES[size]["side"] if enlarged else None)
    real = ImageTensors.from_dataset(data, "train", image_size=side)
    rows = SIZES[size]["rows"] if enlarged else len(real)
    return Bench(size, real, rows, settings["batch_size"], folder, factors)


@contextmanager
def prepared(settings: dict[str, Any], **factors: int) -> Iterator[Bench]:
    """A bench with runs in a folder that vanishes."""
    with TemporaryDirectory() as folder:
        yield bench_in(folder, settings, **factors)


def point(settings: dict[str, Any], path: str, **factors: int) -> dict[str, Any]:
    """What a call of ours takes, to be asked in a fresh process: its peak memory is all this process ever held."""
    with prepared(settings, **factors) as bench:
        case = getattr(bench, path)()
        call = case.ours({}, "no")
        call()
        taken = [seconds(call, bench.device) for _ in range(settings["repeats"])]
        on_gpu = bench.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(bench.device) if on_gpu else highest_memory()
        return {"seconds": taken, "peak_bytes": peak, "rest_bytes": case.rest, "predicted_flops": case.predicted}


def highest_memory() -> int:
    """Of this process so far. The ru_maxrss of getrusage would count what its parent held when it began."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # only Linux has it
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def fresh(settings: dict[str, Any], path: str, **factors: int) -> dict[str, Any]:
    """A point in a process of its own."""
    with process() as ask:
        return ask(point, settings, path, **factors)


def growth(settings: dict[str, Any], paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each path as it is and with one thing larger, every point in a process of its own."""
    for what, path, factor in GROWTH:
        if path in paths:
            grown = {"base": fresh(settings, path), "grown": fresh(settings, path, **{what: factor})}
            yield {"what": what, "path": path, "factor": factor} | grown


# What is written down.


def circumstances(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that a number depends on; of places on this machine only their names."""
    on_gpu = torch.cuda.is_available()
    cpu = f"CPU {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    words = [re.sub(r"(^|=)/.*/", r"\1", word) for word in sys.argv[1:]]
    packages = ("hf_gdd", "torch", "datasets", "diffusers", "accelerate", "numpy", "pillow")
    return {
        "command": shlex.join(["python", "scripts/benchmark.py", *words]),
        "settings": settings | {"data": words_of(settings["data"])},
        "device": torch.cuda.get_device_name() if on_gpu else cpu,
        "cores": os.cpu_count(),
        "tf32": {"convolution": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": commit(),
        "peak": {},
        "paths": [],
        "growth": [],
    }


def commit() -> str | None:
    """Of this script, marked where tracked files have changed since; none without git or outside a repository."""

    def git(*words: str) -> str:
        told = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
        return told.stdout.strip()

    try:
        found, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git
        return None
    return f"{found}-dirty" if found and changed else found or None


def words_of(data: str) -> str:
    """The name of a folder, or a Hub id as it is."""
    return Path(data).name if Path(data).is_dir() else data


def tables(found: dict[str, Any]) -> str:
    """Markdown of what a file holds."""
    parts = [paths_table(found)] * bool(found["paths"]) + [growth_table(found)] * bool(found["growth"])
    settings, versions = found["settings"], found["versions"]
    peaks = [
        f"{max(each, key=each.get)}, {NAMES[how]}: {max(each.values()):,.0f} GFLOP/s"
        for how, each in found["peak"].items()
    ]
    told = f"{found['device']}, {settings['threads']} threads; size {settings['size']}, data {settings['data']}; "
    told += f"{settings['repeats']} repeats; torch {versions['torch']}, hf_gdd {versions['hf_gdd']}"
    name, dash, changed = (found["commit"] or "").partition("-")
    commit = f" ({name[:7]}{dash}{changed})" if name else ""
    peak = f" Peak by measurement: {'; '.join(peaks)}." if peaks else ""
    return "\n\n".join([*parts, f"{told}{commit}.{peak} `{found['command']}`"])


def paths_table(found: dict[str, Any]) -> str:
    """A row for every path, variant and precision."""
    head = "path | settings | images | plain s | ours s | plain / ours | plain img/s | ours img/s | plain TFLOP"
    rows = [f"{head} | predicted | ours TFLOP | ours GFLOP/s | of peak | workers".split(" | ")]
    for row in found["paths"]:
        ours, plain = statistics.median(row["seconds"]), statistics.median(row["reference_seconds"])
        ratios = [a / b for a, b in zip(row["reference_seconds"], row["seconds"], strict=True)]
        speed = row["flops"] / ours / 1e9
        chosen = [told for name, told in CHOSEN.items() if row["arithmetic"].get(name)]
        cells = [row["path"], ", ".join([f"{row['variant']} {NAMES[row['precision']]}".strip(), *chosen])]
        cells += [f"{row['images']:,}", f"{plain:.3g}", f"{ours:.3g}"]
        cells += [f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
        cells += [f"{row['images'] / x:,.0f}" for x in (plain, ours)]
        cells += [f"{row[name] / 1e12:.3g}" for name in ("reference_flops", "predicted_flops", "flops")]
        cells += [f"{speed:,.0f}", f"{speed / max(found['peak'][row['precision']].values()):.0%}"]
        rows.append([*cells, "-" if row["workers"] is None else str(row["workers"])])
    return markdown(rows)


def growth_table(found: dict[str, Any]) -> str:
    """A row for every thing that grew."""
    rows = [
        ["path", "grown", "seconds", "time", "predicted", "peak memory, MiB", "grows by", "of which at rest, predicted"]
    ]
    for row in found["growth"]:
        base, grown = row["base"], row["grown"]
        times = [min(each["seconds"]) for each in (base, grown)]  # what else ran only ever adds
        peaks, rests = ([each[name] / 2**20 for each in (base, grown)] for name in ("peak_bytes", "rest_bytes"))
        cells = [row["path"], f"{row['what']} x{row['factor']}", f"{times[0]:.3g} → {times[1]:.3g}"]
        cells += [f"x{times[1] / times[0]:.2f}", f"x{grown['predicted_flops'] / base['predicted_flops']:.2f}"]
        cells += [f"{peaks[0]:,.0f} → {peaks[1]:,.0f}", f"{peaks[1] - peaks[0]:+,.0f}", f"{rests[1] - rests[0]:+,.0f}"]
        rows.append(cells)
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join(["---"] * len(rows[0])) + " |", *lines[1:]])


def main(
    paths: str = ",".join(PATHS),
    size: Literal["paper", "lite", "tiny"] = "paper",
    precision: str = "no",
    data: str = "digits",
    image_size: int | None = None,
    batch_size: int | None = None,
    repeats: int = 5,
    least: float = 1.0,
    threads: int | None = None,
    growing: Annotated[bool, tyro.conf.arg(name="growth")] = False,
    out: Path = Path("benchmark.json"),
    table: Path | None = None,
) -> None:
    """Measure, write everything to a file and print it as tables.

    Args:
        paths: which, with commas between.
        size: of networks and batches.
        precision: of ours, `no` or `no,bf16`; the reference is always in float32.
        data: `digits`, enlarged and repeated to the size's number of images; or a folder or Hub id, as it is.
        image_size: resize to this many pixels a side.
        batch_size: of every path, instead of the size's.
        repeats: how often ours and the reference take turns.
        least: seconds that one timing lasts at least.
        threads: of torch.
        growing: measure how cost grows instead.
        out: where everything is written.
        table: only print the tables of this file.

    """
    if table is not None:
        print(tables(json.loads(table.read_text())))
        return
    chosen, precisions = paths.split(","), precision.split(",")
    if unknown := {*chosen} - {*PATHS} | {*precisions} - {"no", "bf16"}:
        raise SystemExit(f"Unknown {', '.join(sorted(unknown))}: choose of {', '.join(PATHS)}; of no, bf16.")
    settings = {"size": size, "data": data, "image_size": image_size, "batch_size": batch_size, "repeats": repeats}
    settings |= {"least": least, "threads": threads or torch.get_num_threads()}
    torch.set_num_threads(settings["threads"])
    found = circumstances(settings)
    if growing:
        for row in growth(settings, chosen):
            found["growth"].append(row)
            out.write_text(json.dumps(found, indent=1) + "\n")
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found["peak"] = {how: peak_speed(device, how) for how in precisions}
        for path in chosen:
            found["paths"] += measure(settings, path, precisions)
            out.write_text(json.dumps(found, indent=1) + "\n")  # what is measured stays if the rest is stopped
    print(tables(found))


if __name__ == "__main__":
    tyro.cli(main)
