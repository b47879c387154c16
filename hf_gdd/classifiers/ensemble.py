"""Train several networks of one architecture together."""

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

MAX_STACK = 8  # networks in one stack; more would take more memory and save little


class ClassifierEnsemble:
    """Learners of one architecture that take their SGD steps together.

    Each network learns what it would learn alone from the same rngs: exactly if not stacked, up to rounding if stacked.

    Example:
        learners = [Learner(network, transform, recipe, steps) for network in networks]
        ensemble, rngs = ClassifierEnsemble(learners), [torch.Generator().manual_seed(i) for i in range(len(learners))]
        ensemble.fit([iterate_epochs(train, recipe, rng) for rng in rngs], steps, rngs)
        accuracies = [accuracy(learner.network, test, transform) for learner in ensemble.learners]

    Args:
        learners: one per network, all at the same position of the same schedule.
        stacked: compute the gradients of all networks at once, which takes as many times the memory of activations as
            there are networks. See `stack_groups`. A single network is never stacked.

    """

    def __init__(self, learners: Sequence[Learner], stacked: bool = False) -> None:
        self._learners = list(learners)
        for learner in self._learners:
            learner.network.train()
        self._stack = _Stack(self._learners) if stacked and len(self._learners) > 1 else None

    @property
    def learners(self) -> list[Learner]:
        """The learners in their present state; to be read, not to be trained."""
        if self._stack is not None:
            self._stack.copy_to(self._learners)
        return self._learners

    def step(self, batches: Sequence[Batch], rngs: Sequence[torch.Generator]) -> Tensor:
        """Take one SGD step with every network.

        Args:
            batches: images and labels as `Learner.step` takes them, one batch per network; or a single batch, which all
                networks see with equal augmentation.
            rngs: for augmentation, one per batch, on the images' device.

        Returns:
            The losses [n], still on the device.

        """
        if self._stack is not None and len({images.shape for images, _ in batches}) > 1:
            logger.info("Networks are trained one by one from here on: their batches differ in shape.")
            self._learners, self._stack = self.learners, None
        if self._stack is not None:
            return self._stack.step(batches, rngs)
        if len(batches) == len(self._learners):
            members = zip(self._learners, batches, rngs, strict=True)
            return torch.stack([learner.step(*batch, rng) for learner, batch, rng in members])
        prepared = self._learners[0].prepare_batch(*batches[0], rngs[0])
        return torch.stack([learner.step_on(*prepared) for learner in self._learners])

    def fit(self, batches: Sequence[Iterable[Batch]], steps: int, rngs: Sequence[torch.Generator]) -> None:
        """Take `steps` steps, or fewer if `batches` end.

        Args:
            batches: batches for each network, or a single series for all; see `step`.
            steps: number of SGD steps.
            rngs: for augmentation, one per series.

        """
        for _, *current in zip(range(steps), *batches, strict=False):
            self.step(current, rngs)


class _Stack:
    """Weights, momentum and statistics of n learners, each tensor [n, ...].

    SGD works element by element, so one optimizer serves all networks.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        networks = [learner.network for learner in learners]
        self.first, self.stale = learners[0], False
        self.network = deepcopy(networks[0]).to("meta")  # only its forward pass is used
        self.weights, self.buffers = stack_module_state(networks)
        self.optimizer = torch.optim.SGD(self.weights.values(), **self.first.optimizer.defaults)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.first.schedule.lr_lambdas)
        states = [learner.optimizer.state_dict() for learner in learners]
        momentum = {
            number: {name: torch.stack([state["state"][number][name] for state in states]) for name in buffers}
            for number, buffers in states[0]["state"].items()
        }
        self.optimizer.load_state_dict(states[0] | {"state": momentum})
        self.schedule.load_state_dict(self.first.schedule.state_dict())

    def step(self, batches: Sequence[Batch], rngs: Sequence[torch.Generator]) -> Tensor:
        shared = len(batches) == 1
        prepared = self.first.prepare_batch(*batches[0], rngs[0]) if shared else self._prepare(batches, rngs)
        trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        others = self.buffers | {name: weight for name, weight in self.weights.items() if name not in trained}

        def loss(weights: dict[str, Tensor], others: dict[str, Tensor], *batch: Tensor) -> Tensor:
            return self.first.loss(lambda x: functional_call(self.network, (weights, others), (x,)), *batch)

        dims = (0, 0, *([None if shared else 0] * len(prepared)))
        with torch.no_grad():  # no graph of the gradients themselves
            gradients, losses = vmap(grad_and_value(loss), in_dims=dims)(trained, others, *prepared)
        for name, weight in trained.items():
            weight.grad = gradients[name]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.stale = True
        return losses

    def _prepare(self, batches: Sequence[Batch], rngs: Sequence[torch.Generator]) -> list[Tensor]:
        """Prepare each network's batch by its own draws, but augment all together."""
        first, (images, labels) = self.first, zip(*batches, strict=True)
        images, size = torch.cat(images), len(images[0])
        draws = torch.cat([first.augment.draw(size, rng, images.device) for rng in rngs])
        parts = zip(first.augment_batch(images, draws).split(size), labels, rngs, strict=True)
        return [torch.stack(each) for each in zip(*(first.apply_cutmix(*part) for part in parts), strict=True)]

    @torch.no_grad()
    def copy_to(self, learners: Sequence[Learner]) -> None:
        """Copy the state of each network to its learner.

        Views instead of copies would be saved with the whole stack.
        """
        if not self.stale:
            return
        stacked, state = self.weights | self.buffers, self.optimizer.state_dict()
        for i, learner in enumerate(learners):
            for name, tensor in (*learner.network.named_parameters(), *learner.network.named_buffers()):
                tensor.copy_(stacked[name][i])
            own = {n: {name: x[i].clone() for name, x in buffers.items()} for n, buffers in state["state"].items()}
            learner.optimizer.load_state_dict(state | {"state": own})
            learner.schedule.load_state_dict(self.schedule.state_dict())
        self.stale = False


def can_stack(network: NetworkSpec, device: torch.device) -> bool:
    """Return True if networks are stacked: named ones on a GPU.

    On CPUs only the smallest steps became faster, and others took up to twice as long. A user's module may not support
    vmap.
    """
    return isinstance(network, str) and device.type == "cuda"


def stack_groups(members: Sequence[Member], network: NetworkSpec, device: torch.device) -> list[Sequence[Member]]:
    """Divide members into groups, each to be trained as one stacked ensemble.

    A group has one member unless `can_stack`, and at most `MAX_STACK`.
    """
    size = MAX_STACK if can_stack(network, device) else 1
    return [members[i : i + size] for i in range(0, len(members), size)]
