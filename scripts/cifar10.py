"""Global-local distillation of CIFAR-10, judged at 1, 10 and 50 images per class.

    python scripts/cifar10.py                                  # `paper` preset: made for one GPU
    accelerate launch scripts/cifar10.py                       # the same, on every GPU there is
    python scripts/cifar10.py --preset lite --max-steps 200    # a first look on a CPU

HEADER
Stopped half way? The same command goes on.
"""

from pathlib import Path
from typing import Literal

import tyro

from hf_gdd import GlobalLocalTrainer, Recipe, Report, baselines, evaluate
from hf_gdd.evaluation import as_images


def main(
    dataset: str = "uoft-cs/cifar10",
    output_dir: Path = Path("runs/cifar10"),
    preset: Literal["paper", "lite"] = "paper",
    max_steps: int | None = None,
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
        ipcs: images per class to evaluate.
        n: networks per row of the table.
        seed: of the training and of the images.

    """
    trainer = GlobalLocalTrainer(dataset, preset=preset, max_steps=max_steps, seed=seed, output_dir=output_dir)
    generator = trainer.fit()
    if not trainer.main:
        return

    recipe = Recipe(max_steps=20_000, floor=0.78)  # 20,000 steps bound the full-data row; no other reaches them
    settings = {"networks": ("convnet3",), "n": n, "recipe": recipe}
    real, test = (as_images(dataset, split) for split in ("train", "test"))
    reports = [
        evaluate(generator, test, real=real, ipc=ipc, protocol=protocol, with_baselines=False, **settings)
        for ipc in ipcs
        for protocol in ("fixed", "dynamic")
    ]
    generator.report = Report.merge([*reports, baselines(real, test, ipcs=ipcs, **settings)])
    generator.save_pretrained(output_dir / "generator")
    print(generator.report.markdown())


if __name__ == "__main__":
    tyro.cli(main)
