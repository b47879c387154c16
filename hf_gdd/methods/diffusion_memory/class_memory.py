"""Per-class memories of latents, in which Minimax and self-adaptive memory differ."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gdd.utils.device import at_least_float32

_STATE = ("vectors", "cosines", "arrival", "is_member", "arrivals")
_SAVED_AS = {"vectors": "rows", "is_member": "held"}  # names in checkpoints, which stay those of earlier versions


class ClassMemory:
    """At most `capacity` latents of every class, as unit vectors.

    A rule says which others are evicted. `redundant`: the member with the largest sum of cosines to all members, again
    and again; of equals the one that came first. This is the self-adaptive memory of the public code of arXiv
    2505.19469. `oldest`: first in, first out, as in Minimax (Gu et al., 2024, arXiv 2311.15529). All members are in one
    buffer on the device, beside the cosines between them, of which an insertion computes only its own rows; nothing
    waits for a GPU.

    Args:
        num_classes: K.
        size: elements of a flattened latent.
        capacity: members of each class that remain after `update`.
        evict: `redundant` or `oldest`.
        waiting: largest number of latents of one class that come between two updates.
        device: device of the latents.

    """

    def __init__(
        self,
        num_classes: int,
        size: int,
        capacity: int,
        *,
        evict: str = "redundant",
        waiting: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity, self.evict, self.waiting = capacity, evict, waiting
        room = capacity + waiting
        self.vectors = torch.zeros(num_classes, room, size, device=device)
        self.cosines = torch.zeros(num_classes, room, room, device=device)
        self.arrival = torch.full((num_classes, room), -1, device=device)  # number of the insertion; -1: an empty slot
        self.is_member = torch.zeros(num_classes, room, dtype=torch.bool, device=device)  # seen by `compare`
        self.arrivals = torch.zeros((), dtype=torch.int64, device=device)

    def compare(self, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compare latents [B, ...] with the members of their own class.

        Returns:
            Cosines with every slot of the class's memory [B, capacity + waiting], differentiable in `latents` alone,
            and a mask of the same shape that is true where a slot has a member.

        """
        return self._cosines(_unit(latents), labels), self.is_member[labels]

    @torch.no_grad()
    def add(self, latents: Tensor, labels: Tensor) -> None:
        """Insert latents, which become members at the next `update`.

        Args:
            latents: [B, ...].
            labels: their classes, int64 [B].

        """
        vectors, order = _unit(latents), torch.arange(len(labels), device=labels.device)
        empty_first = (self.arrival >= 0).to(torch.uint8).sort(dim=1, stable=True).indices
        of_same_class_before = (labels[:, None] == labels).tril(-1).sum(1)
        slots = empty_first[labels, of_same_class_before]
        self.vectors[labels, slots] = vectors
        self.arrival[labels, slots] = self.arrivals + order
        self.arrivals += len(order)
        cosines = self._cosines(vectors, labels)
        self.cosines[labels, slots] = cosines
        self.cosines[labels, :, slots] = cosines

    @torch.no_grad()
    def update(self) -> None:
        """Turn waiting latents into members, and evict what exceeds `capacity`."""
        if self.evict == "oldest":
            newest = self.arrival.topk(self.capacity, dim=1).indices
            stays = torch.zeros_like(self.is_member).scatter(1, newest, True)
            self.arrival.masked_fill_(~stays, -1)
        else:
            self._evict_redundant()
        self.is_member = self.arrival >= 0

    def _evict_redundant(self) -> None:
        classes = torch.arange(len(self.vectors), device=self.vectors.device)
        sums = (self.cosines * (self.arrival >= 0)[:, None]).sum(2)
        for _ in range(self.waiting):
            present = self.arrival >= 0
            too_many = present.sum(1) > self.capacity
            if self.vectors.device.type == "cpu" and not too_many.any():  # to ask a GPU would wait for it
                break
            sums_present = sums.masked_fill(~present, -torch.inf)
            worst = sums_present == sums_present.amax(1, keepdim=True)
            victim = torch.where(worst, self.arrival, torch.iinfo(torch.int64).max).argmin(1)
            sums = sums - self.cosines[classes, victim]
            self.arrival[classes, victim] = torch.where(too_many, -1, self.arrival[classes, victim])

    def _cosines(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return cosines of unit vectors [B, size] with all slots of their class."""
        products = vectors @ self.vectors.flatten(0, 1).T  # with all classes: one large product is the fastest
        rows = torch.arange(len(labels), device=labels.device)
        return products.unflatten(1, self.arrival.shape)[rows, labels]

    def mean_cosine(self) -> Tensor:
        """Return the mean cosine of two different members of a class, over all classes."""
        pairs = self.is_member[:, :, None] & self.is_member[:, None, :]
        pairs &= ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
        return (self.cosines * pairs).sum() / pairs.sum().clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Return members, waiting latents, and their order."""
        return {_SAVED_AS.get(name, name): getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in _STATE:
            setattr(self, name, state[_SAVED_AS.get(name, name)].to(self.vectors.device).clone())


def _unit(latents: Tensor) -> Tensor:
    return F.normalize(at_least_float32(latents.flatten(1)), dim=1)
