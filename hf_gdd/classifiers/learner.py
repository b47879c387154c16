"""The only classifier training in the library: evaluation, matching networks and teachers all go through `Learner`."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gdd.classifiers.augment import Augment, cutmix
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.imagenet import ImageNetAugment
from hf_gdd.data.normalization import View
from hf_gdd.data.pixels import to_unit
from hf_gdd.methods.global_local.losses import prediction_gap
from hf_gdd.utils.device import PRECISIONS, autocast

# Factor on the learning rate as a function of the share of the training that is behind.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "halved": lambda done: 0.1 if done > 1 / 2 else 1.0,
    "steps": lambda done: 0.2 ** ((done >= 2 / 3) + (done >= 5 / 6)),
}


def policy(name: str) -> Augment | ImageNetAugment:
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
        policy(self.augment)

    def at(self, ipc: int | None, num_classes: int) -> "Recipe":
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


class Learner:
    """One network, its optimiser and its view of the images (normalised, augmented).

    Args:
        network: from `build_network`, already on its device.
        normalise: the statistics of the real training set.
        recipe: batch order and length are the caller's; the rest is taken from here.
        steps: length of the learning-rate schedule.

    """

    def __init__(self, network: nn.Module, normalise: View, recipe: Recipe, steps: int) -> None:
        self.network, self.normalise, self.precision = network, normalise, recipe.mixed_precision
        self.augment, self.cutmix = policy(recipe.augment), recipe.cutmix
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        factor = SCHEDULES[recipe.schedule]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: factor(step / max(steps, 1)))

    def step(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """One SGD step.

        Args:
            images: uint8 [B, C, H, W], or floats that are normalised already.
            labels: int64 [B] for cross-entropy, or the logits [B, K] to be predicted, see `prediction_gap`.
            generator: of the augmentation, on the images' device.

        Returns:
            The loss, still on the device.

        """
        return self.learn(*self.seen(images, labels, generator))

    def seen(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the network is shown of a batch, which `learn` takes: images as floats and labels, see `mixed`."""
        draw = self.augment.draw(len(images), generator, images.device)
        return self.mixed(self.augmented(images, draw), labels, generator)

    def augmented(self, images: Tensor, draw: Tensor) -> Tensor:
        """Images as floats [B, C, H, W], normalised and augmented by a draw [B, 12]."""
        if images.is_floating_point():
            return self.augment(images, draw)
        unit = to_unit(images)
        if self.augment.of_unit:
            return self.normalise(self.augment(unit, draw))
        return self.augment(self.normalise(unit), draw)

    def mixed(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Images and labels; with cutmix mixed images, their own labels, those pasted in, and the share they keep."""
        if not self.cutmix:
            return x, labels
        x, order, kept = cutmix(x, generator)
        return x, labels, labels[order], kept

    def learn(self, *seen: Tensor) -> Tensor:
        """One SGD step on what is `seen`; returns the loss, still on the device."""
        loss = self.loss(self.network, *seen)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def loss(self, network: Callable[[Tensor], Any], x: Tensor, labels: Tensor, *mixed: Tensor) -> Tensor:
        """What SGD descends, for this network or whatever else maps images to logits and a feature."""
        loss_of = prediction_gap if labels.is_floating_point() else F.cross_entropy
        with autocast(x.device, self.precision):
            logits = network(x)[0]
            loss = loss_of(logits, labels)
            if mixed:
                others, kept = mixed
                loss = kept * loss + (1 - kept) * loss_of(logits, others)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Weights, momentum and place in the schedule."""
        return {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "schedule")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, on a network of the same architecture."""
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


def shuffled(images: int, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Row numbers of the batches of one epoch, each row once."""
    order = torch.randperm(images, generator=generator, device=generator.device)
    return order.tensor_split(recipe.batches(images))


def epochs_of(
    data: ImageTensors | Sequence[ImageTensors], recipe: Recipe, generator: torch.Generator, soft: bool = False
) -> Iterable[tuple[Tensor, Tensor]]:
    """Endless batches over a fixed set, or over several by turns; each epoch in another order, each image once.

    With `soft`, the labels of a batch are the logits [B, K] that are stored with the images.
    """
    for each in itertools.cycle([data] if isinstance(data, ImageTensors) else data):
        for indices in shuffled(len(each), recipe, generator):
            images, labels = each.gather(indices)
            yield images, each.gather_soft(indices) if soft else labels


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, normalise: View, batch_size: int = 1000) -> Tensor:
    """Logits [N, K] of uint8 images [N, C, H, W] in eval mode (BatchNorm uses its running statistics)."""
    training = network.training
    network.eval()
    logits = torch.cat([network(normalise(to_unit(part)))[0] for part in images.split(batch_size)])
    network.train(training)
    return logits


def accuracy(network: nn.Module, data: ImageTensors, normalise: View, batch_size: int = 1000) -> float:
    """Share in [0, 1] of correctly classified images, in eval mode."""
    correct = 0
    for indices in torch.arange(len(data), device=data.labels.device).split(batch_size):
        images, labels = data.gather(indices)
        correct += (predict(network, images, normalise, batch_size).argmax(1) == labels).sum()
    return int(correct) / len(data)
