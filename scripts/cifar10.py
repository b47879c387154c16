"""Global-local distillation of CIFAR-10, judged at 1, 10 and 50 images per class.

    python scripts/cifar10.py               # `paper` preset: the published sizes and lengths, for a GPU
    accelerate launch scripts/cifar10.py    # the same, on every GPU there is

Li et al. (2024, Table 1) report 52.3, 66.7 and 73.1 % for IPC 1, 10 and 50 with a ConvNet3; compare the rows `dynamic`,
which train on as many fresh images every epoch. The published training is about two weeks' work for two CPU cores.

A first look on a CPU, whose samples are silhouettes and whose table only shows that the parts work:

    python scripts/cifar10.py --preset lite --max-steps 200 --eval-steps 300 --ipcs 10 --n 2

Its training took 31 minutes on a busy CPU core (gan 37 images/s, match 10). Stopped half way? The same command goes on.
"""

from pathlib import Path
from typing import Literal

import tyro

from hf_gdd import GlobalLocalTrainer, ImageTensors, Recipe, evaluate


def main(
    dataset: str = "uoft-cs/cifar10",
    output_dir: Path = Path("runs/cifar10"),
    preset: Literal["paper", "lite"] = "paper",
    max_steps: int | None = None,
    eval_steps: int = 20_000,
    ipcs: tuple[int, ...] = (1, 10, 50),
    n: int = 5,
    seed: int = 0,
) -> None:
    """Distil CIFAR-10 into a generator and report what it is worth.

    Args:
        dataset: Hub id, or a local folder in the same layout.
        output_dir: of the run.
        preset: `paper` or `lite`.
        max_steps: cap on each of the two training stages.
        eval_steps: cap on the training of each network of the table.
        ipcs: images per class to evaluate.
        n: networks per row of the table.
        seed: of the training and of the images.

    """
    test = ImageTensors.from_dataset(dataset, "test")
    trainer = GlobalLocalTrainer(dataset, preset=preset, max_steps=max_steps, seed=seed, output_dir=output_dir)
    generator = trainer.fit()
    if not trainer.processes.main:
        return

    recipe = Recipe(max_steps=eval_steps, floor=0.78)
    generator.report = evaluate(
        generator, test, real=trainer.data, ipc=ipcs, protocol=("fixed", "dynamic"), n=n, recipe=recipe
    )
    generator.save_pretrained(output_dir / "generator")
    print(generator.report.markdown())


if __name__ == "__main__":
    tyro.cli(main)
