"""Diffusion with self-adaptive memory at the published size, for a GPU.

DiT-XL/2 at 256 px is tuned on ten classes of ImageNet.

    python scripts/imagenet_subsets.py --dataset <folder or Hub id of ImageNette, ImageWoof or ImageIDC>

The data set's class names, WordNet ids or ImageNet's names, select the model's classes. A data set with other names
needs `--subset`, which says what its labels 0 to 9 are. Two test splits are in use, and the report names yours: the
ImageNet validation images of these classes (500), as in the papers, or the split of fastai's sets (3,925 and 3,929).
The weights are `facebook/DiT-XL-2-256`, CC BY-NC 4.0, at the revision that stores them as safetensors. Gu et al. (2024)
report 39.2 ± 1.3 % for Minimax on ImageWoof at IPC 10 with ResNetAP-10, the best of many tests; this recipe tests once,
at the end. It has not been run yet: loading, tuning and evaluation are tested on a small model of the same structure.
"""

from pathlib import Path
from typing import Literal

import tyro

from hf_gdd import DiffusionMemoryTrainer, ImageTensors, evaluate
from hf_gdd.data.imagenet import SUBSETS


def main(
    dataset: str,
    subset: Literal["imagenette", "imagewoof", "imageidc"] | None = None,
    method: Literal["self-adaptive", "minimax", "dit"] = "self-adaptive",
    output_dir: Path = Path("runs/imagenet-subset"),
    test_split: str = "validation",
    ipcs: tuple[int, ...] = (10, 20, 50, 70, 100),
    networks: tuple[str, ...] = ("resnet10ap-in", "resnet18-in", "convnet6"),
    n: int = 3,
    seed: int = 0,
    max_steps: int | None = None,
    pretrained: str = "facebook/DiT-XL-2-256",
) -> None:
    """Tune DiT-XL/2 on a subset and report what its images are worth.

    Args:
        dataset: folder or Hub id.
        subset: subset whose classes the labels are, in the order of `hf_gdd.data.imagenet.SUBSETS`; by name if None.
        method: `self-adaptive`, `minimax`, or `dit` for tuning without memories.
        output_dir: folder of the run.
        test_split: split that is the test set as a whole.
        ipcs: images per class to evaluate.
        networks: architectures of the table, here at 256 px; the papers train them at 224 px.
        n: networks per row of the table.
        seed: seed of the training and of the images.
        max_steps: cap on the training steps.
        pretrained: folder or repo id of another model of the same kind.

    """
    real, test = (ImageTensors.from_dataset(dataset, split, image_size=256) for split in ("train", test_split))
    options = {"method": method, "classes": SUBSETS[subset] if subset else (), "pretrained": pretrained}
    options |= {"max_steps": max_steps, "seed": seed, "output_dir": output_dir}
    trainer = DiffusionMemoryTrainer(real, preset="paper", **options)
    generator = trainer.fit()
    if not trainer.processes.is_main:
        return
    generator.report = evaluate(
        generator, test, real=real, ipc=ipcs, networks=networks, n=n, recipe="imagenet-subset", quality=True, seed=seed
    )
    generator.save_pretrained(output_dir / "generator")
    print(generator.report.markdown())


if __name__ == "__main__":
    tyro.cli(main)
