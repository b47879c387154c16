"""The only classifier training in the library: evaluation, matching networks and teachers all go through `Learner`."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gdd.classifiers.augment import cutmix
from hf_gdd.classifiers.recipes import SCHEDULES, Recipe, augmentation
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import InputTransform
from hf_gdd.data.pixels import to_unit
from hf_gdd.utils.device import at_least_float32, autocast


class Learner:
    """One network, its optimizer and its view of the images (normalized, augmented).

    Args:
        network: from `build_network`, already on its device.
        normalize: the statistics of the real training set.
        recipe: batch order and length are the caller's; the rest is taken from here.
        steps: length of the learning-rate schedule.

    """

    def __init__(self, network: nn.Module, normalize: InputTransform, recipe: Recipe, steps: int) -> None:
        self.network, self.normalize, self.precision = network, normalize, recipe.mixed_precision
        self.augment, self.cutmix = augmentation(recipe.augment), recipe.cutmix
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        factor = SCHEDULES[recipe.schedule]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: factor(step / max(steps, 1)))

    def step(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """One SGD step.

        Args:
            images: uint8 [B, C, H, W], or floats that are normalized already.
            labels: int64 [B] for cross-entropy, or the logits [B, K] to be predicted, see `prediction_gap`.
            generator: of the augmentation, on the images' device.

        Returns:
            The loss, still on the device.

        """
        return self.step_on(*self.prepare_batch(images, labels, generator))

    def prepare_batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the network is shown of a batch, which `learn` takes: images as floats and labels, see `mixed`."""
        draw = self.augment.draw(len(images), generator, images.device)
        return self.apply_cutmix(self.augment_batch(images, draw), labels, generator)

    def augment_batch(self, images: Tensor, draw: Tensor) -> Tensor:
        """Images as floats [B, C, H, W], normalized and augmented by a draw [B, 12]."""
        if images.is_floating_point():
            return self.augment(images, draw)
        unit = to_unit(images)
        if self.augment.of_unit:
            return self.normalize(self.augment(unit, draw))
        return self.augment(self.normalize(unit), draw)

    def apply_cutmix(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Images and labels; with cutmix mixed images, their own labels, those pasted in, and the share they keep."""
        if not self.cutmix:
            return x, labels
        x, order, kept = cutmix(x, generator)
        return x, labels, labels[order], kept

    def step_on(self, *seen: Tensor) -> Tensor:
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


def shuffled_batches(images: int, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Row numbers of the batches of one epoch, each row once."""
    order = torch.randperm(images, generator=generator, device=generator.device)
    return order.tensor_split(recipe.batches(images))


def iterate_epochs(
    data: ImageTensors | Sequence[ImageTensors], recipe: Recipe, generator: torch.Generator, soft: bool = False
) -> Iterable[tuple[Tensor, Tensor]]:
    """Endless batches over a fixed set, or over several by turns; each epoch in another order, each image once.

    With `soft`, the labels of a batch are the logits [B, K] that are stored with the images.
    """
    for each in itertools.cycle([data] if isinstance(data, ImageTensors) else data):
        for indices in shuffled_batches(len(each), recipe, generator):
            images, labels = each.gather(indices)
            yield images, each.gather_soft(indices) if soft else labels


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, normalize: InputTransform, batch_size: int = 1000) -> Tensor:
    """Logits [N, K] of uint8 images [N, C, H, W] in eval mode (BatchNorm uses its running statistics)."""
    training = network.training
    network.eval()
    logits = torch.cat([network(normalize(to_unit(part)))[0] for part in images.split(batch_size)])
    network.train(training)
    return logits


def accuracy(network: nn.Module, data: ImageTensors, normalize: InputTransform, batch_size: int = 1000) -> float:
    """Share in [0, 1] of correctly classified images, in eval mode."""
    correct = 0
    for indices in torch.arange(len(data), device=data.labels.device).split(batch_size):
        images, labels = data.gather(indices)
        correct += (predict(network, images, normalize, batch_size).argmax(1) == labels).sum()
    return int(correct) / len(data)


def prediction_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean absolute difference of two networks' logits [B, K] for the same images.

    It is what students are trained by in adversarial prediction matching, and what the images ascend (Chen et al.,
    2023, arXiv 2312.08912, Eqs. 4 and 6; the public code takes no logarithm of it).
    """
    return F.l1_loss(at_least_float32(student), at_least_float32(teacher))


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or not a number."""
