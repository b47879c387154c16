"""Real images chosen by a rule: the baselines herding and k-center of the papers' tables."""

import torch
from torch import Tensor

from hf_gdd import ImageTensors, Recipe
from hf_gdd.classifiers.ensemble import ClassifierEnsemble
from hf_gdd.classifiers.learner import Learner, iterate_epochs
from hf_gdd.classifiers.networks import NetworkSpec, build_network
from hf_gdd.data.normalization import Normalize
from hf_gdd.data.pixels import to_unit
from hf_gdd.utils.random import Random


@torch.no_grad()
def features(spec: NetworkSpec, data: ImageTensors, recipe: Recipe, seed: int = 0) -> Tensor:
    """What a network that learned from all images gives its last layer, [N, d]."""
    network = build_network(spec, data.num_classes, data.shape, seed=seed).to(data.device)
    normalize, random, steps = Normalize(data.mean, data.std), Random(seed, data.device), recipe.steps(len(data))
    learner = Learner(network, normalize, recipe, steps)
    with torch.enable_grad():
        ClassifierEnsemble([learner]).fit([iterate_epochs(data, recipe, random.rng)], steps, [random.rng])
    network.eval()
    seen: list[Tensor] = []
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for part in data.images.split(1000):
        network(normalize(to_unit(part.to(data.device))))
    hook.remove()
    return torch.cat(seen)


def herding(features: Tensor, count: int) -> Tensor:
    """Rows whose running mean stays nearest to the mean of all (Welling, 2009), in the order of choice."""
    mean, total, chosen = features.mean(0), torch.zeros_like(features[0]), []
    left = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for number in range(1, count + 1):
        distance = ((total + features) / number - mean).square().sum(1).masked_fill(~left, torch.inf)
        chosen.append(int(distance.argmin()))
        left[chosen[-1]] = False
        total = total + features[chosen[-1]]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Rows of which each is farthest from those before it (Sener & Savarese, 2018), from the nearest to the mean."""
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


SELECTIONS = {"herding": herding, "k-center": k_center}


def selected(rule: str, features: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """For every class the rows of `count` of its images, in the order of choice: a smaller set begins a larger one."""
    found = []
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero()[:, 0]
        found.append(rows[SELECTIONS[rule](features[rows.to(features.device)], count).to(rows.device)])
    return found
