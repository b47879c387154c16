"""The pool of networks in which real and generated images are compared."""

from typing import Any

import torch
from torch import nn

from hf_gdd.classifiers.learner import Learner
from hf_gdd.classifiers.networks import NetworkSpec, build_network, network_name
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normalize
from hf_gdd.utils.random import Random

# SGD of the matching networks in the public DiM code; they see color and crop, never cutout.
MATCHING = Recipe(lr=0.01, momentum=0.9, weight_decay=5e-4, augment="color_crop")


class ModelPool:
    """One matching network at a time, trained on real data and then replaced.

    A network is drawn at random. It starts untrained and learns while the generator is matched in it, so that the
    generator meets networks at every stage of training (Gu et al., 2023; the pool of Li et al., 2024, Sec. 3.2).

    Args:
        networks: names, or callables `(num_classes, shape) -> nn.Module`; drawn uniformly.
        data: real images that the networks learn from.
        inner_steps: SGD steps before each matching; 0 leaves the network random.
        refresh: matchings before a fresh network is drawn.
        random: draws architecture, weights and batches. Its state is not in `state_dict`: a trainer saves it beside the
            pool, as `match_random`.
        recipe: optimizer and augmentation.

    """

    def __init__(
        self,
        networks: tuple[NetworkSpec, ...],
        data: ImageTensors,
        *,
        inner_steps: int,
        refresh: int,
        random: Random,
        recipe: Recipe = MATCHING,
    ) -> None:
        self.networks, self.data, self.recipe, self.random = networks, data, recipe, random
        self.inner_steps, self.refresh = inner_steps, refresh
        self.choice, self.age = 0, 0
        self.learner: Learner | None = None

    def advance(self) -> nn.Module:
        """Train the current network for `inner_steps`, or a fresh one if its time is up.

        Returns:
            The network, in train mode.

        """
        if self.learner is None or self.age == self.refresh:
            self.choice, self.age = self.random.integer(len(self.networks)), 0
            self.learner = self._learner(self.random.integer(2**31))
        self.age += 1
        rng, size = self.random.rng, (self.recipe.batch_size,)
        for _ in range(self.inner_steps):
            indices = torch.randint(len(self.data), size, generator=rng, device=rng.device)
            self.learner.step(*self.data.gather(indices), rng)
        return self.learner.network

    def _learner(self, seed: int) -> Learner:
        network = build_network(self.networks[self.choice], self.data.num_classes, self.data.shape, seed=seed)
        transform, steps = Normalize(self.data.mean, self.data.std), self.refresh * self.inner_steps
        return Learner(network.to(self.data.device), transform, self.recipe, steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the current network, its momentum and its age.

        There is no network if the next matching draws a fresh one.
        """
        learner = None if self.learner is None or self.age == self.refresh else self.learner.state_dict()
        return {"choice": self.choice, "age": self.age, "learner": learner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.choice, self.age, self.learner = state["choice"], state["age"], None
        if state["learner"] is not None:
            self.learner = self._learner(seed=0)
            self.learner.load_state_dict(state["learner"])


def check_networks(networks: tuple[NetworkSpec, ...], data: ImageTensors, needs_feature: bool) -> None:
    """Build every network once, so that a bad one fails before any work.

    Raises:
        ValueError: a network cannot be built, or returns logits alone where a feature is needed.

    """
    for spec in networks:
        network = build_network(spec, data.num_classes, data.shape, seed=0)
        with torch.no_grad():
            _, feature = network.eval()(torch.zeros(2, *data.shape))
        if needs_feature and feature is None:
            raise ValueError(
                f"The network {network_name(spec)} returns logits alone, but local matching needs a feature: return "
                "(logits, feature), or use method='dim' without codes, or codes_local_weight=0."
            )
