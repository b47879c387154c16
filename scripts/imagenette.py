"""Diffusion with self-adaptive memory on Imagenette at 32 px: a table and a figure of what the memories do.

    python scripts/imagenette.py --dataset <folder or Hub id of Imagenette>

One small autoencoder and transformer are trained from scratch. From there `dit` (no memory), `minimax` and
`self-adaptive` (evicting at every step, and at every epoch) go on for equally many steps on the same draws; a sweep of
both weights and of the memories' size follows. Networks trained on 10 and 50 images per class are tested on the whole
validation split, beside random real images, coverage and diversity. It takes about an hour on two CPU cores; every
finished piece is kept in the output folder, and the same command goes on. The published numbers (Gu et al., 2024; arXiv
2505.19469) are of a pretrained DiT-XL/2 at 256 px, see `scripts/imagenet_subsets.py`.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from narrow import convnet3_narrow

from hf_gdd import DiffusionMemoryTrainer, ImageTensors, Recipe, Report, baselines, evaluate
from hf_gdd.methods.diffusion_memory.class_memory import ClassMemory
from hf_gdd.report import RANDOM_REAL
from hf_gdd.utils.random import Random

METHODS: dict[str, dict[str, Any]] = {
    "dit": {"method": "dit"},
    "minimax": {"method": "minimax"},
    "self-adaptive": {"method": "self-adaptive"},
    "self-adaptive, epoch": {"method": "self-adaptive", "memory_update": "epoch"},
}
SWEEP: dict[str, dict[str, Any]] = {
    "real x0": {"real_weight": 0.0},
    "real x10": {"real_weight": 0.02},
    "generated x0": {"gen_weight": 0.0},
    "generated x10": {"gen_weight": 0.08},
    "both x10": {"real_weight": 0.02, "gen_weight": 0.08},
    "memory 16": {"real_memory": 16, "gen_memory": 16},
    "memory 256": {"real_memory": 256, "gen_memory": 256},
}
IPCS = (10, 50)
FLOOR = 0.5  # of full data, by a network this narrow at 32 px


def main(
    dataset: str,
    output_dir: Path = Path("runs/imagenette"),
    test_split: str = "validation",
    n: int = 3,
    seed: int = 0,
    max_steps: int | None = None,
    eval_steps: int = 400,
) -> None:
    """Train, judge and draw.

    Args:
        dataset: local folder or Hub id.
        output_dir: of all runs, reports and the figure.
        test_split: the whole of it is the test set.
        n: networks per row of the table.
        seed: of training and images.
        max_steps: cap on each training stage, for a quick look.
        eval_steps: SGD steps of each network of the table.

    """
    real, test = (ImageTensors.from_dataset(dataset, split, image_size=32) for split in ("train", test_split))
    recipe = Recipe(max_steps=eval_steps, lr=0.05, schedule="cosine", floor=FLOOR)
    judged = {"networks": (convnet3_narrow,), "n": n, "recipe": recipe, "seed": seed}
    reports = {"baselines": kept(output_dir / "baselines.json", n, lambda: baselines(real, test, ipcs=IPCS, **judged))}
    for name, settings in (METHODS | SWEEP).items():
        folder = output_dir / name.replace(", ", "-").replace(" ", "-")
        shared = {"preset": "lite", "seed": seed, "max_steps": max_steps}
        if name != "dit":
            shared["start_from"] = str(output_dir / "dit")
        trainer = DiffusionMemoryTrainer(real, output_dir=folder, **shared, **settings)

        def judge(trainer: DiffusionMemoryTrainer = trainer, name: str = name) -> Report:
            ipcs = IPCS if name in METHODS else IPCS[:1]
            options = {"real": real, "ipc": ipcs, "name": name, "with_baselines": False, "quality": True}
            return evaluate(trainer.fit(), test, **options, **judged)

        reports[name] = kept(folder / "report.json", n, judge)
    report = Report.merge(reports.values())
    report.save(output_dir / "report.json")
    trainer.fit()  # of which all is there: only its latents are wanted
    streams = memories(trainer)
    (output_dir / "memories.json").write_text(json.dumps(streams, indent=2))
    draw(report, streams, output_dir / "memories.png")
    print(report.markdown())
    print(f"\nFigure: {output_dir / 'memories.png'}")


def kept(path: Path, n: int, make: Callable[[], Report]) -> Report:
    """A report of n networks that is there already, or a new one."""
    if not path.is_file() or any(len(result.seeds) != n for result in Report.load(path).results):
        report = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        report.save(path)
    return Report.load(path)


def memories(trainer: DiffusionMemoryTrainer, steps: int = 300, capacity: int = 64) -> dict[str, list[float]]:
    """The mean cosine within both kinds of memory, as the same stream of real latents passes."""
    random, size = Random(0, trainer.device), 64
    filled = {
        evict: ClassMemory(
            10, trainer.latents.shape.numel(), capacity, evict=evict, waiting=size, device=trainer.device
        )
        for evict in ("redundant", "oldest")
    }
    course: dict[str, list[float]] = {evict: [] for evict in filled}
    for _ in range(steps):
        rows = torch.randint(len(trainer.data), (size,), generator=random.rng, device=trainer.device)
        latents, labels = trainer.draw(rows)
        for evict, memory in filled.items():
            memory.add(latents, labels)
            memory.update()
            course[evict].append(float(memory.mean_cosine()))
    return course


def draw(report: Report, streams: dict[str, list[float]], path: Path) -> None:
    """What the memories hold, and accuracy and coverage of every row."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, *panels = figure.subplots(1, 4, width_ratios=(4, 3, 3, 3))
    for evict, course in streams.items():
        left.plot(course, label={"redundant": "self-adaptive", "oldest": "FIFO (Minimax)"}[evict])
    left.set(title="Real latents in a memory of 64", xlabel="steps of 64 images", ylabel="mean cosine of two members")
    left.legend()
    names = [*METHODS, *SWEEP][::-1]
    for axis, (score, ipc) in zip(panels, (("accuracy", 10), ("coverage", 10), ("accuracy", 50)), strict=True):
        values = {name: spread(report, name, score, ipc) for name in [RANDOM_REAL, *names]}
        for place, name in enumerate(names):
            if values[name]:
                mean, std = values[name]
                axis.errorbar(mean, place, xerr=std, fmt="o", capsize=3, color="C0" if name in METHODS else "C7")
        mean, std = values[RANDOM_REAL]
        axis.set(title=f"{score}, IPC {ipc}", xlabel=f"± over networks\nrandom-real: {mean:.3g} ± {std:.1g}")
        axis.set_yticks(range(len(names)), names if axis is panels[0] else [""] * len(names))
        axis.set_ylim(-0.5, len(names) - 0.5)
        axis.grid(axis="x", alpha=0.4)
    figure.savefig(path, dpi=100)


def spread(report: Report, name: str, score: str, ipc: int) -> tuple[float, float] | None:
    """Mean and deviation over networks, accuracy in %; None where there is no such row."""
    if score == "accuracy":
        found = [result.accuracies for result in report.find(name, ipc=ipc)]
        return (100 * statistics.fmean(found[0]), 100 * statistics.stdev(found[0])) if found else None
    found = [row.scores[score] for row in report.quality if (row.name, row.ipc) == (name, ipc)]
    return (statistics.fmean(found[0]), statistics.stdev(found[0])) if found else None


if __name__ == "__main__":
    tyro.cli(main)
