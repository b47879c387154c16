"""Adversarial prediction matching, beside the bank it began with and random real images, with hard and soft labels.

    python scripts/prediction_matching.py                       # the bundled 8x8 digits

Expect about six minutes on two CPU cores and no network. `start` is the same random real images before the first step
with labels of the same teacher, so its distance from `prediction-matching` is what moving the images brings, and the
distance of its `soft` row from its `fixed` row what the labels bring. `unrounded` trains on the images as they were
optimised, before they became pixels. Compare like with like: `fixed` with `fixed`, `soft` with `soft`.

    python scripts/prediction_matching.py --dataset zalando-datasets/fashion_mnist --preset lite --recipe short \
        --networks convnet3 vgg11 resnet18-dd --output-dir runs/matching-fashion

Stopped half way? The same command goes on.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from hf_gdd import AutoGenerator, ImageTensors, PredictionMatchingTrainer, Recipe, Report, baselines, evaluate
from hf_gdd.classifiers import find_recipe
from hf_gdd.judging import Judge
from hf_gdd.report import SOFT, Result
from hf_gdd.rng import Random

# Of Fashion-MNIST: the published recipe of this method, cut to what two CPU cores do in minutes.
SHORT = Recipe(epochs=300, max_steps=300, batch_size=256, lr=0.02, schedule="halved", augment="color_crop")


def main(
    dataset: str = "digits",
    output_dir: Path = Path("runs/prediction-matching"),
    preset: Literal["paper", "lite", "tiny"] = "tiny",
    ipcs: tuple[int, ...] = (10,),
    networks: tuple[str, ...] = ("convnet2",),
    recipe: Literal["paper", "prediction-matching", "short", "tiny"] = "tiny",
    n: int = 3,
    seed: int = 0,
) -> None:
    """Optimise a bank of each size, and judge it with its start and the baselines.

    Args:
        dataset: `digits`, a Hub id, or a local folder.
        output_dir: one folder for each IPC is made in it.
        preset: of the training.
        ipcs: images per class.
        networks: that are trained; all but the preset's own are architectures the bank never met.
        recipe: of their training; `short` is the published one for 300 steps.
        n: networks of each architecture per row of the table.
        seed: of the training and of the first network.

    """
    test = ImageTensors.from_dataset(dataset, "test")
    chosen = SHORT if recipe == "short" else find_recipe(recipe)
    shared = {"networks": networks, "recipe": chosen, "n": n, "seed": seed}
    reports, banks = [], {}
    for ipc in ipcs:
        folder = output_dir / f"ipc{ipc}"
        trainer = PredictionMatchingTrainer(dataset, preset=preset, ipc=ipc, seed=seed, output_dir=folder)
        banks[folder] = trainer.fit()
        for name, bank in ((None, banks[folder]), ("start", AutoGenerator.from_pretrained(folder / "start"))):
            reports.append(evaluate(bank, test, real=trainer.data, with_baselines=False, name=name, **shared))
        judge = Judge(test, trainer.view, networks[:1], n, chosen, seed, progress=True)
        reports.append(replace(reports[0], results=tuple(unrounded(judge, trainer))))
    reports.insert(0, baselines(trainer.data, test, ipcs=ipcs, bank=banks[folder], **shared))

    report = Report.merge(reports)
    for folder, bank in banks.items():
        bank.report = report
        bank.save_pretrained(folder / "generator")
    print(report.markdown())
    full = report.find("full data", network=networks[0])[0].mean
    for ipc in ipcs:
        found = report.find("prediction-matching", ipc=ipc, protocol=SOFT, network=networks[0])[0]
        share = ipc * test.num_classes / len(trainer.data)
        print(f"{share:6.1%} of the images: {found.mean / full:.1%} of the accuracy on full data")
    if not report.valid:
        sys.exit("The recipe is invalid here, so the table decides nothing.")


def unrounded(judge: Judge, trainer: PredictionMatchingTrainer) -> list[Result]:
    """The row of the images as they were before they became pixels, with the same teacher's labels for them."""
    images, teacher = trainer.groups.images().to(judge.test.device), trainer.teachers[0]
    with torch.no_grad():
        logits = teacher(images)[0]

    def batches(i: int, random: Random) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(images), generator=random.device, device=images.device)
            for rows in order.tensor_split(judge.recipe.batches(len(images))):
                yield images[rows], logits[rows]

    row = {"name": "unrounded", "protocol": SOFT, "ipc": trainer.config.ipc}
    return judge.train(batches, len(images), images.nbytes + logits.nbytes, **row)


if __name__ == "__main__":
    tyro.cli(main)
