"""Recipes: settings by which classifiers are trained."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_gdd.classifiers.augment import Augment
from hf_gdd.classifiers.imagenet_augment import ImageNetAugment
from hf_gdd.utils.device import PRECISIONS

# Factor on the learning rate as a function of the share of the training that is done.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "halved": lambda done: 0.1 if done > 1 / 2 else 1.0,
    "steps": lambda done: 0.2 ** ((done >= 2 / 3) + (done >= 5 / 6)),
}
SOFT_LOSSES = ("l1", "kl")


def augmentation(name: str) -> Augment | ImageNetAugment:
    """Return the augmentation that a recipe names.

    Raises:
        ValueError: unknown name.

    """
    if name == "dsa":
        return Augment("color_crop_cutout_flip_scale_rotate", single=True)
    return ImageNetAugment() if name == "imagenet" else Augment(name)


@dataclass(frozen=True)
class Recipe:
    """Settings by which a classifier is trained.

    The defaults are the evaluation recipe of the public DiM code (Gu et al., 2023).

    Example:
        recipe = Recipe(epochs=100, lr=0.05, schedule="cosine", augment="color_crop_cutout")
        recipe.steps(1000)  # 100 epochs of 16 batches

    Raises:
        ValueError: a field is out of range.

    """

    epochs: int = 1000
    """passes over the training set; a pass over a stream is as many fresh images"""
    epochs_up_to: tuple[tuple[int, int], ...] = ()
    """other numbers of epochs for small sets: pairs (most images per class, epochs), rising"""
    max_steps: int | None = None
    """upper bound on the number of SGD steps; None for no bound"""
    batch_size: int = 64
    """most images in a step; an epoch is split into batches of nearly equal size"""
    lr: float = 0.01
    """initial learning rate of SGD"""
    momentum: float = 0.9
    """momentum of SGD"""
    weight_decay: float = 5e-4
    """weight decay of SGD"""
    schedule: str = "constant"
    """learning rate: `constant`, `cosine` (to zero), `halved` (a tenth after half of the training) or `steps` (a fifth
    from 2/3 of the training on, and again from 5/6 on)"""
    augment: str = "color_crop"
    """policy of `Augment`, drawn anew for each image; `dsa` for one drawn operation per batch (Zhao & Bilen, 2021);
    `imagenet` for `ImageNetAugment`; "" for none"""
    cutmix: bool = False
    """mix every batch with itself in another order, see `hf_gdd.classifiers.augment.cutmix`"""
    mixed_precision: str = "no"
    """precision of forward pass and loss: `no` (float32) or `bf16`"""
    floor: float = 0.0
    """accuracy on full data in [0, 1] below which the recipe is too weak to compare data sets"""
    soft_loss: str = "l1"
    """loss on a teacher's logits: `l1`, their mean absolute difference (Chen et al., 2023), or `kl`, the divergence of
    the softened predictions (Hinton et al., 2015)"""
    temperature: float = 2.0
    """factor that softens the predictions of `kl`; without effect on `l1`"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Recipe.{name} is {getattr(self, name)}; it must be positive.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"Recipe.max_steps is {self.max_steps}; pass a positive number, or None for no bound.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Unknown schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}.")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"Unknown mixed_precision {self.mixed_precision!r}; choose {' or '.join(PRECISIONS)}.")
        if self.soft_loss not in SOFT_LOSSES:
            raise ValueError(f"Unknown soft_loss {self.soft_loss!r}; choose {' or '.join(SOFT_LOSSES)}.")
        augmentation(self.augment)

    def identity(self) -> dict[str, Any]:
        """Return the fields as primitives, for reports and cache keys.

        Those of soft labels are left out at `l1`: earlier versions knew no other loss, and their records stay valid.
        """
        left_out = ("soft_loss", "temperature") if self.soft_loss == "l1" else ()
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def for_ipc(self, ipc: int | None, num_classes: int) -> "Recipe":
        """Return the recipe for a set of `ipc` images per class; None is full data.

        From a hundred classes on there are two thirds of the epochs, in whole hundreds, as in the public Minimax code.
        """
        epochs = next((epochs for largest, epochs in self.epochs_up_to if ipc and ipc <= largest), self.epochs)
        if self.epochs_up_to and num_classes >= 100:
            epochs = max(100, epochs * 2 // 300 * 100)
        return replace(self, epochs=epochs, epochs_up_to=())

    def batches(self, images: int) -> int:
        """Return the number of batches in one epoch over `images` images."""
        return math.ceil(images / self.batch_size)

    def steps(self, images: int) -> int:
        """Return the number of SGD steps of the whole training on `images` images."""
        steps = self.epochs * self.batches(images)
        return steps if self.max_steps is None else min(steps, self.max_steps)


RECIPES = {
    "paper": Recipe(),
    # Ten classes of ImageNet in the public Minimax code (Gu et al., 2024), but tested once.
    "imagenet-subset": Recipe(
        epochs=300,
        epochs_up_to=((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500)),
        schedule="steps",
        augment="imagenet",
        cutmix=True,
        floor=0.8,
    ),
    # CIFAR-10 at IPC 50 and 500 in the public code of adversarial prediction matching (arXiv 2312.08912).
    "prediction-matching": Recipe(epochs=1000, batch_size=256, lr=0.02, schedule="halved", augment="dsa"),
    # Sets of up to 50 images per class, learned to the end in a minute or so on a CPU.
    "short": Recipe(max_steps=600, lr=0.05, schedule="cosine"),
    # The bundled 8x8 digits, on which the published recipe learns too slowly to tell good data from bad.
    "tiny": Recipe(batch_size=32, max_steps=300, lr=0.05, schedule="cosine", floor=0.97),
}


def find_recipe(recipe: Recipe | str | None) -> Recipe:
    """Return a recipe by its name; None is `paper`.

    Raises:
        ValueError: unknown name.

    """
    if isinstance(recipe, Recipe):
        return recipe
    if (recipe or "paper") not in RECIPES:
        raise ValueError(f"Unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)} or pass a Recipe.")
    return RECIPES[recipe or "paper"]
