"""Adversarial prediction matching, beside the bank it began with and random real images, with hard and soft labels.

    python scripts/prediction_matching.py                          # the bundled 8x8 digits, ten images of every class

Expect about five minutes on two CPU cores and no network. `start` is the same random real images before the first step,
with labels of the same teacher: what separates it from `prediction-matching` is what moving the images brings, and what
separates its `soft` row from its `fixed` row is what the labels bring. `unrounded` trains on the images as they were
optimized, before they became pixels. Compare `fixed` with `fixed` and `soft` with `soft`.

    python scripts/prediction_matching.py --dataset zalando-datasets/fashion_mnist --preset lite --recipe short \
        --networks convnet3 --cross resnet10-dd --output-dir runs/matching-fashion

trained for 23 minutes on one CPU thread beside other programs; model_cards/fashion_mnist-matching has the table, whose
last column says what each row took. Stopped half way? The same command goes on; what was judged is kept as JSON.
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
    """Optimise a bank of each size, and judge it with its start and the baselines.

    Args:
        dataset: `digits`, a Hub id, or a local folder.
        output_dir: one folder for each IPC is made in it.
        preset: of the training.
        ipcs: images per class.
        networks: that are trained on the bank, its start and the baselines.
        cross: architectures that the bank never met, trained on it and the baselines.
        cross_n: networks of each of those.
        recipe: of all of them; `short` is the published one for 100 steps.
        n: networks of each architecture per row of the table.
        seed: of the training and of the first network.
        zca: whether networks see whitened images, instead of the preset's.
        image_lr: instead of the preset's.
        hard_weight: instead of the preset's.
        held_out: judge on this part of the training images rather than on the test set, as settings are chosen.
        teacher_cache: where trained teachers are kept, if not in the Hugging Face cache.

    """
    real, test = ImageTensors.from_dataset(dataset, "train"), ImageTensors.from_dataset(dataset, "test")
    if held_out is not None:
        real, test = real.split(held_out)
    chosen = SHORT if recipe == "short" else find_recipe(recipe)
    shared = {"recipe": chosen, "n": n, "seed": seed}
    changes = {"zca": zca, "image_lr": image_lr, "hard_weight": hard_weight, "teacher_cache": teacher_cache}
    changes = {name: value for name, value in changes.items() if value is not None}
    reports, banks = [], {}
    for ipc in ipcs:
        folder = output_dir / f"ipc{ipc}"
        trainer = PredictionMatchingTrainer(real, preset=preset, ipc=ipc, seed=seed, output_dir=folder, **changes)
        banks[folder] = bank = trainer.fit()
        start = AutoGenerator.from_pretrained(folder / "start", device=bank.device)
        judge = Evaluator(test, trainer.view, networks, n, chosen, seed, progress=True)
        alone = {"networks": networks, "real": real, "with_baselines": False, **shared}
        reports.append(kept(folder / "bank.json", evaluate, bank, test, **alone))
        reports.append(kept(folder / "start.json", evaluate, start, test, name="start", **alone))
        reports.append(kept(folder / "unrounded.json", unrounded, trainer, judge, reports[-1].normalization))
        if cross:
            alone |= {"networks": cross, "n": cross_n}
            reports.append(kept(folder / "cross.json", evaluate, bank, test, **alone))
    shared |= {"ipcs": ipcs, "bank": bank}
    reports.insert(0, kept(output_dir / "baselines.json", baselines, real, test, networks=networks, **shared))
    if cross:
        shared |= {"networks": cross, "n": cross_n}
        reports.append(kept(output_dir / "cross-baselines.json", baselines, real, test, **shared))

    report = Report.merge(reports)
    report.save(output_dir / "report.json")
    for folder, each in banks.items():
        each.report = report
        each.save_pretrained(folder / "generator")
    print(report.markdown())
    (full,) = report.find(FULL_DATA, network=networks[0])
    for ipc in ipcs:
        (found,) = report.find(bank.method, ipc=ipc, protocol=SOFT, network=networks[0])
        share = ipc * real.num_classes / len(real)
        print(f"{share:6.1%} of the images, soft labels: {found.mean / full.mean:.1%} of the accuracy on full data")
    if not report.valid:
        sys.exit("The recipe is invalid here, so the table decides nothing.")


def kept(path: Path, judged: Callable[..., Report], *args: Any, **kwargs: Any) -> Report:
    """A report that an earlier run left under the same circumstances, or one that is made now."""
    told = [repr(x) for x in (*args, *kwargs.values()) if isinstance(x, (str, int, tuple, Recipe))]
    path = path.with_stem(f"{path.stem}-{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}")
    if not path.exists():
        judged(*args, **kwargs).save(path)
    return Report.load(path)


def unrounded(trainer: PredictionMatchingTrainer, judge: Evaluator, normalization: str) -> Report:
    """The row of the images as they were before they became pixels, with the same teacher's labels for them."""
    images, teacher = trainer.groups.images().to(judge.test.device), trainer.teachers[0]
    with torch.no_grad():
        logits = torch.cat([teacher(part)[0] for part in images.split(500)])

    def batches(i: int, random: Random) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for rows in shuffled_batches(len(images), judge.recipe, random.rng):
                yield images[rows], logits[rows]

    row = {"name": "unrounded", "protocol": SOFT, "ipc": trainer.config.ipc}
    results = judge.train(batches, len(images), images.nbytes + logits.nbytes, **row)
    data = trainer.data
    return judge.report(results, f"{data.source} ({data.fingerprint[:12]})", normalization)


if __name__ == "__main__":
    tyro.cli(main)
