"""Distill CIFAR-10, Fashion-MNIST or MNIST by global-local matching.

It is evaluated at 1, 10 and 50 images per class.

    python scripts/global_local.py --dataset cifar10           # preset `paper`: published sizes and lengths, for a GPU
    accelerate launch scripts/global_local.py --dataset mnist  # the same on every GPU of the machine

Compare the `dynamic` rows, which train on that many fresh images every epoch, with Table 1 of Li et al. (2024):

    dataset         accuracy with ConvNet3, IPC 1 / 10 / 50    first look, stages `gan` and `match`
    cifar10         52.3 / 66.7 / 73.1 %                       31 minutes on one busy CPU core (gan 37, match 10 img/s)
    fashion_mnist   85.5 / 88.6 / 90.1 %                       21 minutes on two busy CPU cores
    mnist           97.3 / 98.8 / 99.1 %                       as long as fashion_mnist: as many images of equal size

The `fixed` and `soft` rows are of distilled images, if the generator has codes. Preset `lite` makes 50 of every class;
`paper` makes none, as published, unless you add `--codes-ipc 50`. The first line of the table says where they beat
random real images.

The published training would take two CPU cores about two weeks. A first look on a CPU gives samples that are only
silhouettes; its table shows that the parts work, no more:

    python scripts/global_local.py --preset lite --max-steps 200 --eval-steps 300 --ipcs 10 --n 2

To resume a run that was stopped, repeat the command.
"""

from pathlib import Path
from typing import Literal

import tyro

from hf_gdd import GlobalLocalTrainer, ImageTensors, Recipe, evaluate

# Hub id, and the accuracy on full data under which an evaluation decides nothing.
DATASETS = {
    "cifar10": ("uoft-cs/cifar10", 0.78),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", 0.9),
    "mnist": ("ylecun/mnist", 0.985),
}


def main(
    dataset: Literal["cifar10", "fashion_mnist", "mnist"] = "cifar10",
    preset: Literal["paper", "fast", "lite"] = "paper",
    source: str | None = None,
    output_dir: Path | None = None,
    max_steps: int | None = None,
    codes_ipc: int | None = None,
    eval_steps: int = 20_000,
    ipcs: tuple[int, ...] = (1, 10, 50),
    n: int = 5,
    seed: int = 0,
) -> None:
    """Distill a data set into a generator and evaluate it.

    Args:
        dataset: the data set.
        preset: settings of the training.
        source: local folder in the layout of the Hub's data set, or another Hub id.
        output_dir: folder of the run; `runs/<dataset>` if None.
        max_steps: cap on each training stage.
        codes_ipc: distilled images of every class; as the preset says if None.
        eval_steps: cap on the steps of each network of the table.
        ipcs: images per class to evaluate.
        n: networks per row of the table.
        seed: seed of the training.

    """
    (name, floor), output_dir = DATASETS[dataset], output_dir or Path("runs") / dataset
    test = ImageTensors.from_dataset(source or name, "test")
    options = {"max_steps": max_steps, "seed": seed} | ({} if codes_ipc is None else {"codes_ipc": codes_ipc})
    trainer = GlobalLocalTrainer(source or name, preset=preset, output_dir=output_dir, **options)
    generator = trainer.fit()
    if not trainer.processes.is_main:
        return

    recipe = Recipe(max_steps=eval_steps, floor=floor)
    protocols = ("fixed", "soft", "dynamic") if generator.has_soft_labels else ("fixed", "dynamic")
    generator.report = evaluate(generator, test, real=trainer.data, ipc=ipcs, protocol=protocols, n=n, recipe=recipe)
    generator.save_pretrained(output_dir / "generator")
    print(generator.report.markdown())


if __name__ == "__main__":
    tyro.cli(main)
