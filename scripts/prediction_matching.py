"""Adversarial prediction matching, beside its start and random real images, with hard and with soft labels.

    python scripts/prediction_matching.py                 # the bundled 8x8 digits, ten images per class

This takes about five minutes on two CPU cores and needs no network. The rows of the table:

- `start`: the real images that the bank began with, labeled by the same teacher. `prediction-matching` minus `start` is
  what moving the images brings; `soft` minus `fixed` is what the teacher's labels bring.
- `unrounded`: the optimized images before they were rounded to pixels.

Compare `fixed` with `fixed` and `soft` with `soft`.

    python scripts/prediction_matching.py --dataset zalando-datasets/fashion_mnist --preset lite --recipe short \
        --networks convnet3 --cross resnet10-dd --output-dir runs/matching-fashion

trains for 23 minutes on one busy CPU thread; docs/results.md has its table, with the seconds of every row. To resume a
run that was stopped, repeat the command: finished rows are stored as JSON.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from hf_gdd import AutoGenerator, ImageTensors, PredictionMatchingTrainer, Recipe, Report, baselines, evaluate
from hf_gdd.classifiers.learner import shuffled_batches
from hf_gdd.classifiers.recipes import find_recipe
from hf_gdd.evaluation.evaluator import Evaluator
from hf_gdd.report import FULL_DATA, SOFT
from hf_gdd.utils.random import Random

# The published recipe of this method, cut to a tenth of its steps.
SHORT = Recipe(max_steps=100, batch_size=100, lr=0.05, schedule="halved", augment="color_crop")


def main(
    dataset: str = "digits",
    output_dir: Path = Path("runs/prediction-matching"),
    preset: Literal["paper", "lite", "tiny"] = "tiny",
    ipcs: tuple[int, ...] = (10,),
    networks: tuple[str, ...] = ("convnet2",),
    cross: tuple[str, ...] = (),
    cross_n: int = 1,
    recipe: Literal["paper", "prediction-matching", "short", "tiny"] = "tiny",
    n: int = 3,
    seed: int = 0,
    zca: bool | None = None,
    image_lr: float | None = None,
    hard_weight: float | None = None,
    held_out: float | None = None,
    teacher_cache: str | None = None,
) -> None:
    """Optimize a bank of every size, and evaluate it with its start and the baselines.

    Args:
        dataset: `digits`, a Hub id, or a local folder.
        output_dir: folder for one subfolder per IPC.
        preset: settings of the training.
        ipcs: images per class.
        networks: architectures trained on the bank, on its start and on the baselines.
        cross: architectures that the bank never met, trained on it and on the baselines.
        cross_n: networks of each of those.
        recipe: how all of them are trained; `short` is the published recipe with 100 steps.
        n: networks of each architecture per row of the table.
        seed: seed of the training and of the first network.
        zca: whether networks see whitened images; the preset's if None.
        image_lr: learning rate of the images; the preset's if None.
        hard_weight: weight of the class term; the preset's if None.
        held_out: evaluate on this part of the training images instead of the test set, to choose settings.
        teacher_cache: folder of trained teachers; the Hugging Face cache if None.

    """
    real, test = ImageTensors.from_dataset(dataset, "train"), ImageTensors.from_dataset(dataset, "test")
    if held_out is not None:
        real, test = real.split(held_out)
    chosen = SHORT if recipe == "short" else find_recipe(recipe)
    changes = {"zca": zca, "image_lr": image_lr, "hard_weight": hard_weight, "teacher_cache": teacher_cache}
    changes = {name: value for name, value in changes.items() if value is not None}
    shared = {"recipe": chosen, "seed": seed}
    own, others = {"networks": networks, "n": n, **shared}, {"networks": cross, "n": cross_n, **shared}
    alone, reports, banks = {"real": real, "with_baselines": False}, [], {}
    for ipc in ipcs:
        folder = output_dir / f"ipc{ipc}"
        trainer = PredictionMatchingTrainer(real, preset=preset, ipc=ipc, seed=seed, output_dir=folder, **changes)
        banks[folder] = bank = trainer.fit()
        start = AutoGenerator.from_pretrained(folder / "start", device=bank.device)
        evaluator = Evaluator(test, trainer.transform, networks, n, chosen, seed, progress=True)
        reports.append(stored(folder / "start.json", evaluate, start, test, name="start", **alone, **own))
        reports.append(stored(folder / "unrounded.json", unrounded, trainer, evaluator, reports[-1].normalization))
        for each in (own, others) if cross else (own,):
            reports.append(stored(folder / "bank.json", evaluate, bank, test, **alone, **each))
    for each in (others, own) if cross else (own,):
        rows = stored(output_dir / "baselines.json", baselines, real, test, ipcs=ipcs, bank=bank, **each)
        reports.insert(0, rows)

    report = Report.merge(reports)
    report.save(output_dir / "report.json")
    for folder, each in banks.items():
        each.report = report
        each.save_pretrained(folder / "generator")
    print(report.markdown())
    (full,) = report.find(FULL_DATA, network=networks[0])
    for ipc in ipcs:
        (row,) = report.find(bank.method, ipc=ipc, protocol=SOFT, network=networks[0])
        share = ipc * real.num_classes / len(real)
        print(f"{share:6.1%} of the images, soft labels: {row.mean / full.mean:.1%} of the accuracy on full data")
    if not report.valid:
        sys.exit("Full data stays under the floor of the recipe, so this table cannot rank the methods.")


def stored(path: Path, evaluate_rows: Callable[..., Report], *args: Any, **kwargs: Any) -> Report:
    """Return the report that an earlier run stored for these arguments, or compute and store it."""
    given = [repr(x) for x in (*args, *kwargs.values()) if isinstance(x, (str, int, tuple, Recipe))]
    path = path.with_stem(f"{path.stem}-{hashlib.sha256(repr(given).encode()).hexdigest()[:8]}")
    if not path.exists():
        evaluate_rows(*args, **kwargs).save(path)
    return Report.load(path)


def unrounded(trainer: PredictionMatchingTrainer, evaluator: Evaluator, normalization: str) -> Report:
    """Evaluate the images as they were before they became pixels, with the same teacher's labels for them."""
    images, teacher = trainer.groups.images().to(evaluator.test.device), trainer.teachers[0]
    with torch.no_grad():
        logits = torch.cat([teacher(part)[0] for part in images.split(500)])

    def batches(i: int, random: Random) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for rows in shuffled_batches(len(images), evaluator.recipe, random.rng):
                yield images[rows], logits[rows]

    row = {"name": "unrounded", "protocol": SOFT, "ipc": trainer.config.ipc}
    results = evaluator.evaluate_batches(batches, len(images), images.nbytes + logits.nbytes, **row)
    data = trainer.data
    return evaluator.build_report(results, f"{data.source} ({data.fingerprint[:12]})", normalization)


if __name__ == "__main__":
    tyro.cli(main)
