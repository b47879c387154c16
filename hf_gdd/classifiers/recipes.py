"""Recipes: how a classifier is trained."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hf_gdd.classifiers.augment import Augment, ImageNetAugment
from hf_gdd.utils.device import PRECISIONS

# Factor on the learning rate as a function of the share of the training that is behind.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "halved": lambda done: 0.1 if done > 1 / 2 else 1.0,
    "steps": lambda done: 0.2 ** ((done >= 2 / 3) + (done >= 5 / 6)),
}


def augmentation(name: str) -> Augment | ImageNetAugment:
    """The augmentation that a recipe names.

    Raises:
        ValueError: unknown name.

    """
    if name == "dsa":
        return Augment("color_crop_cutout_flip_scale_rotate", single=True)
    return ImageNetAugment() if name == "imagenet" else Augment(name)


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. The defaults are the evaluation recipe of the public DiM code (Gu et al., 2023).

    Attributes:
        epochs: passes over the training set; one pass over a stream is as many fresh images.
        epochs_up_to: other numbers of epochs for small sets, as pairs (most images per class, epochs), rising.
        max_steps: upper bound on the number of SGD steps, whatever the size of the set; None for no bound.
        batch_size: at most this many images a step; an epoch is split into batches of nearly equal size.
        lr: learning rate of SGD, multiplied by the schedule.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        schedule: `constant`, `cosine` (to zero over the whole training), `halved` (a tenth of the rate after half of
            the training) or `steps` (a fifth of the rate from 2/3 of the training on, and again from 5/6 on).
        augment: policy of `hf_gdd.classifiers.augment.Augment`, drawn anew for each sample; `dsa` for one of all its operations in
            each batch (Zhao & Bilen, 2021); `imagenet`; "" for none.
        cutmix: whether every batch is mixed with itself in another order, see `hf_gdd.classifiers.augment.cutmix`.
        mixed_precision: `no` or `bf16`, of forward and loss.
        floor: full-data accuracy in [0, 1] under which the recipe is too weak to judge a data set by.

    Raises:
        ValueError: a field is out of range.

    """

    epochs: int = 1000
    epochs_up_to: tuple[tuple[int, int], ...] = ()
    max_steps: int | None = None
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    augment: str = "color_crop"
    cutmix: bool = False
    mixed_precision: str = "no"
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Recipe.{name} is {getattr(self, name)}; it must be positive.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"Recipe.max_steps is {self.max_steps}; pass a positive number, or None for no bound.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Unknown schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}.")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"Unknown mixed_precision {self.mixed_precision!r}; choose {' or '.join(PRECISIONS)}.")
        augmentation(self.augment)

    def for_ipc(self, ipc: int | None, num_classes: int) -> "Recipe":
        """The recipe for a set of `ipc` images of each class, None for full data.

        From a hundred classes on, two thirds of the epochs, in whole hundreds, as the public Minimax code has it.
        """
        epochs = next((epochs for largest, epochs in self.epochs_up_to if ipc and ipc <= largest), self.epochs)
        if self.epochs_up_to and num_classes >= 100:
            epochs = max(100, epochs * 2 // 300 * 100)
        return replace(self, epochs=epochs, epochs_up_to=())

    def batches(self, images: int) -> int:
        """Batches in one epoch over `images` images."""
        return math.ceil(images / self.batch_size)

    def steps(self, images: int) -> int:
        """SGD steps of the whole training on a set of `images` images."""
        steps = self.epochs * self.batches(images)
        return steps if self.max_steps is None else min(steps, self.max_steps)


# Evaluation of the public code of adversarial prediction matching (arXiv 2312.08912) for CIFAR-10 at IPC 50 and 500.
PREDICTION_MATCHING = Recipe(epochs=1000, batch_size=256, lr=0.02, schedule="halved", augment="dsa")


# `imagenet-subset` is the recipe of the public Minimax code (Gu et al., 2024) for ten classes of ImageNet, tested once.
# `tiny` is made for the bundled 8x8 digits, where the published recipe is too slow a learner to tell good from bad.
RECIPES = {
    "paper": Recipe(),
    "imagenet-subset": Recipe(
        epochs=300,
        epochs_up_to=((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500)),
        schedule="steps",
        augment="imagenet",
        cutmix=True,
        floor=0.8,
    ),
    "prediction-matching": PREDICTION_MATCHING,
    "tiny": Recipe(batch_size=32, max_steps=300, lr=0.05, schedule="cosine", floor=0.97),
}


def find_recipe(recipe: Recipe | str | None) -> Recipe:
    """A recipe by name; None is `paper`.

    Raises:
        ValueError: unknown name.

    """
    if isinstance(recipe, Recipe):
        return recipe
    if (recipe or "paper") not in RECIPES:
        raise ValueError(f"Unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)} or pass a Recipe.")
    return RECIPES[recipe or "paper"]
