"""Diffusion with self-adaptive memory on Imagenette at 32 px, with a sweep of the memories' settings.

    python scripts/imagenette.py --dataset <folder or Hub id of Imagenette>

A small autoencoder and transformer are trained from scratch. From there `dit` (no memory), `minimax` and
`self-adaptive` (evicting at every step, and at every epoch) train for equally many steps on the same random draws. A
sweep of both weights and of the memories' size follows. Networks trained on 10 and 50 images per class are tested on
the whole validation split, beside random real images, coverage and diversity. This takes about an hour on two CPU
cores. At this size the samples show no objects and random real images win by far; the published numbers (Gu et al.,
2024; arXiv 2505.19469) come from a pretrained DiT-XL/2 at 256 px, see `scripts/imagenet_subsets.py`. To resume a run
that was stopped, repeat the command: trainings continue, evaluations are repeated.
"""

from pathlib import Path
from typing import Any

import torch
import tyro

from hf_gdd import DiffusionMemoryTrainer, ImageTensors, Recipe, Report, baselines, evaluate
from hf_gdd.methods.diffusion_memory.class_memory import ClassMemory

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
FLOOR = 0.5  # accuracy on full data of a network this narrow at 32 px


def main(
    dataset: str,
    output_dir: Path = Path("runs/imagenette"),
    test_split: str = "validation",
    n: int = 3,
    seed: int = 0,
    max_steps: int | None = None,
    eval_steps: int = 400,
) -> None:
    """Train every setting, evaluate it, and compare what the memories hold.

    Args:
        dataset: local folder or Hub id.
        output_dir: folder for one subfolder per setting.
        test_split: split that is the test set as a whole.
        n: networks per row of the table.
        seed: seed of the trainings and of the images.
        max_steps: cap on each training stage, for a quick look.
        eval_steps: SGD steps of each network of the table.

    """
    real, test = (ImageTensors.from_dataset(dataset, split, image_size=32) for split in ("train", test_split))
    recipe = Recipe(max_steps=eval_steps, lr=0.05, schedule="cosine", floor=FLOOR)
    settings = {"networks": "convnet3_narrow", "n": n, "recipe": recipe, "seed": seed}
    reports = [baselines(real, test, ipcs=IPCS, **settings)]
    for name, changes in (METHODS | SWEEP).items():
        start_from = None if name == "dit" else str(output_dir / "dit")
        folder = output_dir / name.replace(", ", "-").replace(" ", "-")
        shared = {"preset": "lite", "start_from": start_from, "max_steps": max_steps, "seed": seed}
        trainer = DiffusionMemoryTrainer(real, output_dir=folder, **shared, **changes)
        ipcs = IPCS if name in METHODS else IPCS[:1]
        options = {"real": real, "ipc": ipcs, "name": name, "with_baselines": False, "quality": True}
        reports.append(evaluate(trainer.fit(), test, **options, **settings))
    report = Report.merge(reports)
    report.save(output_dir / "report.json")
    print(report.markdown())
    print("\nMean cosine of two members of a memory of 64 real latents, lower is more diverse:")
    for evict, cosine in memory_cosines(trainer).items():
        print(f"  {evict:11}{cosine:.3f}")


def memory_cosines(trainer: DiffusionMemoryTrainer, steps: int = 300, capacity: int = 64) -> dict[str, float]:
    """Pass one stream of real latents through a memory of either eviction rule; returns each one's mean cosine."""
    size, latent = 64, trainer.latents.shape.numel()
    options = {"waiting": size, "device": trainer.device}
    memories = {rule: ClassMemory(10, latent, capacity, evict=rule, **options) for rule in ("redundant", "oldest")}
    for _ in range(steps):
        rows = torch.randint(len(trainer.data), (size,), generator=trainer.random.rng, device=trainer.device)
        latents, labels = trainer.sample_latents(rows)
        for memory in memories.values():
            memory.add(latents, labels)
            memory.update()
    return {rule: float(memory.mean_cosine()) for rule, memory in memories.items()}


if __name__ == "__main__":
    tyro.cli(main)
