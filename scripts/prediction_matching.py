"""Adversarial prediction matching, beside its start and random real images.

It is evaluated with hard and with soft labels.

    python scripts/prediction_matching.py                 # the bundled 8x8 digits, ten images per class

This takes about five minutes on two CPU cores and needs no network. Rows `start` are the real images that the bank
began with, labeled by the same teacher: `prediction-matching` minus `start` is what moving the images brings, `soft`
minus `fixed` is what the teacher's labels bring. Compare `fixed` with `fixed` and `soft` with `soft`.

    python scripts/prediction_matching.py --dataset zalando-datasets/fashion_mnist --preset lite --recipe short \
        --networks convnet3 resnet10-dd --output-dir runs/matching-fashion

trains for 23 minutes on one busy CPU thread. docs/results.md has a table of it, with the seconds of every row. To
resume a training that was stopped, repeat the command.
"""

from pathlib import Path
from typing import Literal

import tyro

from hf_gdd import AutoGenerator, ImageTensors, PredictionMatchingTrainer, Recipe, Report, baselines, evaluate
from hf_gdd.report import FULL_DATA, SOFT

# The published recipe of this method, cut to a tenth of its steps.
SHORT = Recipe(max_steps=100, batch_size=100, lr=0.05, schedule="halved", augment="color_crop")


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
    """Optimize a bank of every size, and evaluate it with its start and the baselines.

    Args:
        dataset: `digits`, a Hub id, or a local folder.
        output_dir: folder for one subfolder per IPC.
        preset: settings of the training.
        ipcs: images per class.
        networks: architectures that are trained on each set, also other ones than the bank was optimized with.
        recipe: how all of them are trained; `short` is the published recipe with 100 steps.
        n: networks of each architecture per row of the table.
        seed: seed of the training and of the first network.

    """
    real, test = (ImageTensors.from_dataset(dataset, split) for split in ("train", "test"))
    settings = {"networks": networks, "recipe": SHORT if recipe == "short" else recipe, "n": n, "seed": seed}
    banks, reports = {}, []
    for ipc in ipcs:
        folder = output_dir / f"ipc{ipc}"
        banks[ipc] = PredictionMatchingTrainer(real, preset=preset, ipc=ipc, seed=seed, output_dir=folder).fit()
        start = AutoGenerator.from_pretrained(folder / "start", device=banks[ipc].device)
        for name, images in (("start", start), (None, banks[ipc])):
            reports.append(evaluate(images, test, real=real, name=name, with_baselines=False, **settings))

    report = Report.merge([baselines(real, test, ipc=ipcs, bank=banks[ipcs[0]], **settings), *reports])
    (full, *_) = report.find(FULL_DATA)
    print(report.markdown())
    for ipc, bank in banks.items():
        bank.report = report
        bank.save_pretrained(output_dir / f"ipc{ipc}" / "generator")
        (row,) = report.find(bank.method, ipc=ipc, protocol=SOFT, network=full.network)
        share = ipc * real.num_classes / len(real)
        print(f"{share:6.1%} of the images, soft labels: {row.mean / full.mean:.1%} of the accuracy on full data")


if __name__ == "__main__":
    tyro.cli(main)
