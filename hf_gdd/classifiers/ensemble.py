"""Networks of one architecture trained in step: each learns what it would alone, in fewer and larger operations."""

import logging
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from hf_gdd.classifiers.learner import Learner, Recipe
from hf_gdd.classifiers.networks import NetworkSpec, Shape, build_network, network_name
from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.normalization import Normaliser
from hf_gdd.utils.device import seconds

logger = logging.getLogger("hf_gdd")

Batch = tuple[Tensor, Tensor]
Member = TypeVar("Member")

STACKED_ON = ("cuda",)
_TOGETHER = 8  # networks in one stack, at most: more would take more memory and save little
_TRIED = 5  # steps that are timed, after as many that warm up
_WORTH = 0.9  # of the time one by one: what stacking must stay under, for it takes n times the memory


class Cohort:
    """Learners of one architecture, at one place of one schedule, that take their steps together.

    Each learns what it would alone from the same generators: exactly so one by one, and but for rounding if stacked.

    Args:
        learners: one for each network.
        stacked: take the gradients of all networks at once, which needs n times the memory of activations; a single
            network is never stacked. See `stacking_pays`.

    """

    def __init__(self, learners: Sequence[Learner], stacked: bool = False) -> None:
        self._learners = list(learners)
        for learner in self._learners:
            learner.network.train()
        self._stack = _Stack(self._learners) if stacked and len(self._learners) > 1 else None

    @property
    def learners(self) -> list[Learner]:
        """All of them as they are now, complete with momentum and schedule; to be looked at, not to be trained."""
        if self._stack is not None:
            self._stack.hand_back(self._learners)
        return self._learners

    def step(self, batches: Sequence[Batch], generators: Sequence[torch.Generator]) -> Tensor:
        """One SGD step of every network.

        Args:
            batches: one for each network, of images and labels as `Learner.step` takes them; or a single one, which
                all of them then see alike, augmented by the same draws.
            generators: of the augmentation, one for each batch, on the images' device.

        Returns:
            The losses [n], still on the device.

        """
        if self._stack is not None and len({images.shape for images, _ in batches}) > 1:
            logger.info("Networks are trained one by one from here on: their batches differ in shape.")
            self._learners, self._stack = self.learners, None
        if self._stack is not None:
            return self._stack.step(batches, generators)
        if len(batches) == len(self._learners):
            drawn = zip(self._learners, batches, generators, strict=True)
            return torch.stack([learner.step(*batch, generator) for learner, batch, generator in drawn])
        seen = self._learners[0].seen(*batches[0], generators[0])
        return torch.stack([learner.learn(*seen) for learner in self._learners])

    def fit(self, batches: Sequence[Iterable[Batch]], steps: int, generators: Sequence[torch.Generator]) -> None:
        """Take `steps` steps, or fewer where `batches` end: for each network its own, or a single one for all."""
        for _, *drawn in zip(range(steps), *batches, strict=False):
            self.step(drawn, generators)


class _Stack:
    """Weights, momentum and statistics of several learners, each tensor [n, ...]; SGD is the same for any shape."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        networks = [learner.network for learner in learners]
        self.first, self.stale = learners[0], False
        self.network = deepcopy(networks[0]).to("meta")  # for its forward
        self.weights, self.buffers = stack_module_state(networks)
        self.optimizer = torch.optim.SGD(self.weights.values(), **self.first.optimizer.defaults)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.first.schedule.lr_lambdas)
        states = [learner.optimizer.state_dict() for learner in learners]
        momentum = {
            number: {name: torch.stack([state["state"][number][name] for state in states]) for name in kept}
            for number, kept in states[0]["state"].items()
        }
        self.optimizer.load_state_dict(states[0] | {"state": momentum})
        self.schedule.load_state_dict(self.first.schedule.state_dict())

    def step(self, batches: Sequence[Batch], generators: Sequence[torch.Generator]) -> Tensor:
        shared = len(batches) == 1
        seen = self.first.seen(*batches[0], generators[0]) if shared else self._seen(batches, generators)
        trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        others = self.buffers | {name: weight for name, weight in self.weights.items() if name not in trained}

        def loss(weights: dict[str, Tensor], others: dict[str, Tensor], *seen: Tensor) -> Tensor:
            return self.first.loss(lambda x: functional_call(self.network, (weights, others), (x,)), *seen)

        dims = (0, 0, *([None if shared else 0] * len(seen)))
        with torch.no_grad():  # no graph of the gradients themselves
            gradients, losses = vmap(grad_and_value(loss), in_dims=dims)(trained, others, *seen)
        for name, weight in trained.items():
            weight.grad = gradients[name]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.stale = True
        return losses

    def _seen(self, batches: Sequence[Batch], generators: Sequence[torch.Generator]) -> list[Tensor]:
        """What each network is shown, by its own draws, stacked; the images are augmented in one batch."""
        first, drawn = self.first, list(zip(*batches, strict=True))
        images, labels = torch.cat(drawn[0]), drawn[1]
        size = len(images) // len(batches)
        draws = [first.augment.draw(size, generator, images.device) for generator in generators]
        parts = zip(first.augmented(images, torch.cat(draws)).split(size), labels, generators, strict=True)
        return [torch.stack(each) for each in zip(*(first.mixed(*part) for part in parts), strict=True)]

    @torch.no_grad()
    def hand_back(self, learners: Sequence[Learner]) -> None:
        """Copy to each learner what is its own; copies, since a view would be saved with the whole stack."""
        if not self.stale:
            return
        stacked, state = self.weights | self.buffers, self.optimizer.state_dict()
        for i, learner in enumerate(learners):
            for name, tensor in (*learner.network.named_parameters(), *learner.network.named_buffers()):
                tensor.copy_(stacked[name][i])
            own = {number: {name: x[i].clone() for name, x in kept.items()} for number, kept in state["state"].items()}
            learner.optimizer.load_state_dict(state | {"state": own})
            learner.schedule.load_state_dict(self.schedule.state_dict())
        self.stale = False


def in_step(
    members: Sequence[Member], network: NetworkSpec, data: ImageTensors, recipe: Recipe, batch_size: int
) -> list[Sequence[Member]]:
    """Whose networks to train in one stacked cohort: as many at a time as may be; or each alone where that is as fast.

    Args:
        members: whatever stands for the networks.
        network: their architecture.
        data: of such images and classes, on the device.
        recipe: of their training.
        batch_size: the most images that each sees in a step.

    """
    size = min(len(members), _TOGETHER)
    told = (network, data.num_classes, data.shape, torch.device(data.device), recipe, batch_size)
    size = size if stacking_pays(size, *told) else 1
    return [members[i : i + size] for i in range(0, len(members), size)]


@lru_cache(maxsize=64)
def stacking_pays(
    n: int,
    network: NetworkSpec,
    num_classes: int,
    shape: Shape,
    device: torch.device,
    recipe: Recipe,
    batch_size: int,
) -> bool:
    """Whether n networks learn faster in a stacked `Cohort` than one by one, on batches of so many images.

    On a GPU it is tried, once in a process for the same arguments, on networks and images of its own. Elsewhere it does
    not: on a CPU, stacking gained on the smallest of steps alone and took up to twice as long on others, and there a
    run is to repeat bit for bit, which must not hang on a trial.
    """
    if n < 2 or device.type not in STACKED_ON:
        return False

    def cohort(size: int, **how: Any) -> Cohort:
        networks = [build_network(network, num_classes, shape, seed=i).to(device) for i in range(size)]
        view = Normaliser((0.0,), (1.0,))  # images that are normalised already, as these are, do not pass it
        return Cohort([Learner(each, view, recipe, steps=2 * _TRIED) for each in networks], **how)

    batch = torch.zeros(batch_size, *shape, device=device), torch.zeros(batch_size, dtype=torch.int64, device=device)
    what = f"{n} networks {network_name(network)}, {batch_size} images a step"
    alone = n * _step_seconds(cohort(1), batch)
    try:
        together = _step_seconds(cohort(n, stacked=True), batch)
    except RuntimeError as error:  # what a network of the user's does may not be batched, or not fit
        logger.info("%s: one by one, for they cannot be stacked (%s).", what, error)
        return False
    pays = together < _WORTH * alone
    how = "stacked" if pays else "one by one"
    logger.info("%s: %s, for a step takes %.1f ms stacked, %.1f ms one by one.", what, how, 1e3 * together, 1e3 * alone)
    return pays


def _step_seconds(cohort: Cohort, batch: Batch) -> float:
    """What a step takes on average, with a batch for each network."""
    device = batch[0].device
    generators = [torch.Generator(device).manual_seed(0) for _ in cohort.learners]

    def steps() -> None:
        for _ in range(_TRIED):
            cohort.step([batch] * len(generators), generators)

    steps()
    return seconds(steps, device) / _TRIED
