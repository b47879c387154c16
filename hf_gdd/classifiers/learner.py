"""Classifier training, shared by evaluation, matching networks and teachers."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
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


class NonFiniteLossError(RuntimeError):
    """Raised when a loss or a weight becomes infinite or not a number."""


class Learner:
    """One network with its optimizer, schedule, input transform and augmentation.

    Example:
        train, recipe, rng = ImageTensors.from_dataset("digits"), Recipe(max_steps=5), torch.Generator().manual_seed(0)
        transform = Normalize(train.mean, train.std)
        network = build_network("convnet1", train.num_classes, train.shape, seed=0)
        learner = Learner(network, transform, recipe, steps=recipe.steps(len(train)))
        for images, labels in itertools.islice(iterate_epochs(train, recipe, rng), recipe.steps(len(train))):
            learner.step(images, labels, rng)
        share = accuracy(network, train, transform)

    Args:
        network: from `build_network`, on its device.
        transform: from the real training set.
        recipe: optimizer, schedule, augmentation and precision; batches and length are up to the caller.
        steps: length of the learning-rate schedule.

    """

    def __init__(self, network: nn.Module, transform: InputTransform, recipe: Recipe, steps: int) -> None:
        self.network, self.transform, self.precision = network, transform, recipe.mixed_precision
        self.augment, self.cutmix = augmentation(recipe.augment), recipe.cutmix
        kl = partial(softened_divergence, temperature=recipe.temperature)
        self.soft_loss = kl if recipe.soft_loss == "kl" else prediction_gap
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        factor = SCHEDULES[recipe.schedule]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: factor(step / max(steps, 1)))

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Take one SGD step.

        Args:
            images: uint8 [B, C, H, W], or floats that are normalized already.
            labels: int64 [B] for cross-entropy, or a teacher's logits [B, K] for the recipe's `soft_loss`.
            rng: for augmentation, on the images' device.

        Returns:
            The loss, still on the device.

        """
        return self.step_on(*self.prepare_batch(images, labels, rng))

    def prepare_batch(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Transform, augment and mix a batch; returns the arguments of `step_on`."""
        draw = self.augment.draw(len(images), rng, images.device)
        return self.apply_cutmix(self.augment_batch(images, draw), labels, rng)

    def augment_batch(self, images: Tensor, draw: Tensor) -> Tensor:
        """Return floats [B, C, H, W], transformed and augmented by a draw [B, 12]."""
        if images.is_floating_point():
            return self.augment(images, draw)
        unit = to_unit(images)
        if self.augment.takes_unit_range:
            return self.transform(self.augment(unit, draw))
        return self.augment(self.transform(unit), draw)

    def apply_cutmix(self, x: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Mix a batch if the recipe says so; see `cutmix`.

        Returns:
            Images and labels; if mixed, also the labels of the pasted boxes and the share of their own pixels that
            images retain.

        """
        if not self.cutmix:
            return x, labels
        x, order, share = cutmix(x, rng)
        return x, labels, labels[order], share

    def step_on(self, *batch: Tensor) -> Tensor:
        """Take one SGD step on a prepared batch; returns the loss, still on the device."""
        loss = self.loss(self.network, *batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def loss(self, network: Callable[[Tensor], Any], x: Tensor, labels: Tensor, *mixed: Tensor) -> Tensor:
        """Return the training loss of a prepared batch.

        Args:
            network: maps images to logits and a feature; `self.network`, or a functional form of it.
            x: images, floats [B, C, H, W].
            labels: int64 [B] or logits [B, K].
            mixed: with cutmix, labels of the pasted boxes and the share of own pixels.

        """
        loss_of = self.soft_loss if labels.is_floating_point() else F.cross_entropy
        with autocast(x.device, self.precision):
            logits = network(x)[0]
            loss = loss_of(logits, labels)
            if mixed:
                pasted_labels, share = mixed
                loss = share * loss + (1 - share) * loss_of(logits, pasted_labels)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return weights, momentum and the position in the schedule."""
        return {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "schedule")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of a network of the same architecture."""
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


def shuffled_batches(images: int, recipe: Recipe, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Return the shuffled row numbers of one epoch over `images` images, in batches."""
    order = torch.randperm(images, generator=rng, device=rng.device)
    return order.tensor_split(recipe.batches(images))


def iterate_epochs(
    data: ImageTensors | Sequence[ImageTensors], recipe: Recipe, rng: torch.Generator, soft: bool = False
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield batches of images and labels without end, shuffled anew in each epoch.

    Args:
        data: one set, or several that take turns, one epoch each.
        recipe: sets the batch size.
        rng: for shuffling, on the device where the images are stored.
        soft: yield the stored logits [B, K] as labels.

    """
    for each in itertools.cycle([data] if isinstance(data, ImageTensors) else data):
        for indices in shuffled_batches(len(each), recipe, rng):
            images, labels = each.gather(indices)
            yield images, each.gather_soft(indices) if soft else labels


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, transform: InputTransform, batch_size: int = 1000) -> Tensor:
    """Return logits [N, K] of uint8 images [N, C, H, W] in eval mode."""
    training = network.training
    network.eval()
    logits = torch.cat([network(transform(to_unit(part)))[0] for part in images.split(batch_size)])
    network.train(training)
    return logits


def accuracy(network: nn.Module, data: ImageTensors, transform: InputTransform, batch_size: int = 1000) -> float:
    """Return the share in [0, 1] of correctly classified images, in eval mode."""
    correct = 0
    for indices in torch.arange(len(data), device=data.labels.device).split(batch_size):
        images, labels = data.gather(indices)
        correct += (predict(network, images, transform, batch_size).argmax(1) == labels).sum()
    return int(correct) / len(data)


def prediction_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean absolute difference of logits [B, K] (Chen et al., 2023, Eq. 4).

    In adversarial prediction matching (arXiv 2312.08912) students descend it and images ascend it (Eq. 6). The public
    code takes no logarithm of it.
    """
    return F.l1_loss(at_least_float32(student), at_least_float32(teacher))


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the KL divergence of softened predictions (Hinton et al., 2015).

    It is the mean over the batch of logits [B, K]. The factor temperature^2 gives gradients of one size at any
    temperature, as in the paper.
    """
    log_p, log_q = (F.log_softmax(at_least_float32(logits) / temperature, 1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
