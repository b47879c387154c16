"""Networks of one architecture trained in step: each learns what it would alone, in fewer and larger operations."""

import logging
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from hf_gdd.classifiers.learner import Learner
from hf_gdd.classifiers.networks import NetworkSpec

logger = logging.getLogger("hf_gdd")

Batch = tuple[Tensor, Tensor]
Member = TypeVar("Member")

MAX_STACK = 8  # networks in one stack: more would take more memory and save little


class ClassifierEnsemble:
    """Learners of one architecture, at one place of one schedule, that take their steps together.

    Each learns what it would alone from the same generators: exactly so one by one, and but for rounding if stacked.

    Args:
        learners: one for each network.
        stacked: take the gradients of all networks at once, which needs n times the memory of activations; a single
            network is never stacked. See `stack_groups`.

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
        seen = self._learners[0].prepare_batch(*batches[0], generators[0])
        return torch.stack([learner.step_on(*seen) for learner in self._learners])

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
        seen = self.first.prepare_batch(*batches[0], generators[0]) if shared else self._seen(batches, generators)
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
        parts = zip(first.augment_batch(images, torch.cat(draws)).split(size), labels, generators, strict=True)
        return [torch.stack(each) for each in zip(*(first.apply_cutmix(*part) for part in parts), strict=True)]

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


def can_stack(network: NetworkSpec, device: torch.device) -> bool:
    """Return True for named networks on a GPU.

    On a CPU stacking gained on the smallest steps only, and took up to twice as long on others. A user's own module may
    not support vmap.
    """
    return isinstance(network, str) and device.type == "cuda"


def stack_groups(members: Sequence[Member], network: NetworkSpec, device: torch.device) -> list[Sequence[Member]]:
    """Divide members into groups to train in one stacked ensemble each: of one, unless `can_stack`."""
    size = MAX_STACK if can_stack(network, device) else 1
    return [members[i : i + size] for i in range(0, len(members), size)]
