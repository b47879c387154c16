"""Coresets: subsets of real images chosen by herding or k-center."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from hf_gdd.classifiers.learner import Learner, iterate_epochs
from hf_gdd.classifiers.networks import NetworkSpec, build_network, penultimate_features
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.report import HERDING, K_CENTER
from hf_gdd.utils.random import Random

_BATCH = 1000


def train_network(spec: NetworkSpec, data: ImageTensors, recipe: Recipe | None, seed: int = 0) -> nn.Module:
    """Train a network on all images; returns it in eval mode, without gradients.

    Args:
        spec: architecture, see `build_network`.
        data: real training images.
        recipe: recipe of the training; None leaves the network untrained.
        seed: seed of the weights and of the training.

    """
    network = build_network(spec, data.num_classes, data.shape, seed=seed).to(data.device)
    if recipe is not None:
        rng, steps = Random(seed, data.device).rng, recipe.steps(len(data))
        learner = Learner(network, Normalize(data.mean, data.std), recipe, steps)
        for images, labels in islice(iterate_epochs(data, recipe, rng), steps):
            learner.step(images, labels, rng)
    return network.eval().requires_grad_(False)


def coreset_features(spec: NetworkSpec, data: ImageTensors, recipe: Recipe, seed: int = 0) -> Tensor:
    """Train a network on all images and return the inputs of its last layer.

    Args:
        spec: architecture, see `build_network`.
        data: real training images.
        recipe: recipe of the training.
        seed: seed of the weights and of the training.

    Returns:
        Features [N, d] on `data.device`.

    Example:
        train = ImageTensors.from_dataset("digits")
        features = coreset_features("convnet1", train, Recipe(max_steps=20))
        rows = select_coreset("herding", features, train.labels, 10)  # ten images of each class

    """
    network, transform = train_network(spec, data, recipe, seed), Normalize(data.mean, data.std)
    with torch.no_grad():
        batches = (transform(to_unit(part.to(data.device))) for part in data.images.split(_BATCH))
        return torch.cat([penultimate_features(network, batch)[1] for batch in batches])


def herding(features: Tensor, count: int) -> Tensor:
    """Choose rows whose running mean stays nearest to the mean of all (Welling, 2009)."""
    mean, total, chosen = features.mean(0), torch.zeros_like(features[0]), []
    available = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for number in range(1, count + 1):
        distance = ((total + features) / number - mean).square().sum(1).masked_fill(~available, torch.inf)
        chosen.append(int(distance.argmin()))
        available[chosen[-1]] = False
        total = total + features[chosen[-1]]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Choose rows far from all chosen before, greedily (Sener & Savarese, 2018).

    The first is the row nearest to the mean of all.
    """
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


CORESETS: dict[str, Callable[[Tensor, int], Tensor]] = {HERDING: herding, K_CENTER: k_center}
"""Rules by name: each takes features [N, d] and a count, and returns row numbers in order of choice"""


def select_coreset(rule: str, features: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """Choose `count` images of every class.

    Args:
        rule: one of `CORESETS`.
        features: [N, d], see `coreset_features`.
        labels: int64 [N].
        count: images per class.

    Returns:
        For each class the row numbers in order of choice: a smaller coreset is the beginning of a larger one.

    """
    selected = []
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero()[:, 0]
        selected.append(rows[CORESETS[rule](features[rows.to(features.device)], count).to(rows.device)])
    return selected


def cut_coresets(
    rules: Sequence[str], features: Tensor, data: ImageTensors, ipcs: Sequence[int]
) -> dict[tuple[str, int], ImageTensors]:
    """Return the coreset of each rule and number of images per class, as data sets.

    Args:
        rules: of `CORESETS`.
        features: of `data`, see `coreset_features`.
        data: real training images.
        ipcs: images per class, one number or several.

    """
    coresets = {}
    for rule in rules:
        chosen = select_coreset(rule, features, data.labels, max(ipcs))
        for ipc in ipcs:
            images, labels = data.gather(torch.cat([rows[:ipc] for rows in chosen]))
            coresets[rule, ipc] = replace(data, images=images, labels=labels, source=f"{data.source} [{rule}]")
    return coresets
