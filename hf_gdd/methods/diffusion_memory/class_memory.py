"""Per-class memories of latents: the only difference between Minimax and the self-adaptive method."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gdd.utils.device import at_least_float32

EVICT = ("redundant", "oldest")


class ClassMemory:
    """At most `capacity` latents of every class, as unit vectors; the rest is evicted by a rule.

    `redundant` evicts the member with the largest sum of cosines to all members, again and again (the self-adaptive
    memory of the public code of arXiv 2505.19469); of equals the one that came first. `oldest` is first in, first out
    (Minimax, Gu et al., 2024, arXiv 2311.15529). All members are in one buffer on the device, beside the cosines
    between them, of which an insertion computes only its own rows; nothing waits for a GPU.

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
        if evict not in EVICT:
            raise ValueError(f"Unknown rule {evict!r}; choose one of {', '.join(EVICT)}.")
        if capacity < 1:
            raise ValueError(f"A memory of {capacity} latents remembers nothing; its capacity must be positive.")
        self.capacity, self.evict, self.waiting = capacity, evict, waiting
        room = capacity + waiting
        self.rows = torch.zeros(num_classes, room, size, device=device)
        self.cosines = torch.zeros(num_classes, room, room, device=device)
        self.arrival = torch.full((num_classes, room), -1, device=device)  # number of the insertion; -1: an empty place
        self.held = torch.zeros(num_classes, room, dtype=torch.bool, device=device)  # members, seen by `compare`
        self.arrivals = torch.zeros((), dtype=torch.int64, device=device)

    def compare(self, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compare latents [B, ...] with the members of their own class.

        Returns:
            Cosines with every place of the class's memory [B, capacity + waiting], differentiable in `latents` alone,
            and a mask of the same shape that is true where a place holds a member.

        """
        return self._cosines(_unit(latents), labels), self.held[labels]

    @torch.no_grad()
    def add(self, latents: Tensor, labels: Tensor) -> None:
        """Insert latents [B, ...] of these classes [B]; they become members at the next `update`."""
        vectors, rows = _unit(latents), torch.arange(len(labels), device=labels.device)
        empty_first = (self.arrival >= 0).to(torch.uint8).sort(dim=1, stable=True).indices
        of_same_class_before = (labels[:, None] == labels).tril(-1).sum(1)
        places = empty_first[labels, of_same_class_before]
        self.rows[labels, places] = vectors
        self.arrival[labels, places] = self.arrivals + rows
        self.arrivals += len(rows)
        cosines = self._cosines(vectors, labels)
        self.cosines[labels, places] = cosines
        self.cosines[labels, :, places] = cosines

    @torch.no_grad()
    def update(self) -> None:
        """Turn waiting latents into members, and evict until no class has more than `capacity`."""
        if self.evict == "oldest":
            newest = self.arrival.topk(self.capacity, dim=1).indices
            stays = torch.zeros_like(self.held).scatter(1, newest, True)
            self.arrival.masked_fill_(~stays, -1)
        else:
            self._evict_redundant()
        self.held = self.arrival >= 0

    def _evict_redundant(self) -> None:
        classes = torch.arange(len(self.rows), device=self.rows.device)
        sums = (self.cosines * (self.arrival >= 0)[:, None]).sum(2)
        for _ in range(self.waiting):
            present = self.arrival >= 0
            too_many = present.sum(1) > self.capacity
            if self.rows.device.type == "cpu" and not too_many.any():  # to ask a GPU would wait for it
                break
            sums_present = sums.masked_fill(~present, -torch.inf)
            worst = sums_present == sums_present.amax(1, keepdim=True)
            victim = torch.where(worst, self.arrival, torch.iinfo(torch.int64).max).argmin(1)
            sums = sums - self.cosines[classes, victim]
            self.arrival[classes, victim] = torch.where(too_many, -1, self.arrival[classes, victim])

    def _cosines(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return cosines of unit vectors [B, size] with all places of their class, [B, places]."""
        products = vectors @ self.rows.flatten(0, 1).T  # with all classes: one large product is the fastest
        rows = torch.arange(len(labels), device=labels.device)
        return products.unflatten(1, self.arrival.shape)[rows, labels]

    def mean_cosine(self) -> Tensor:
        """Return the mean cosine of two different members of a class, over all classes: 1 if all are equal."""
        pairs = self.held[:, :, None] & self.held[:, None, :]
        pairs &= ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
        return (self.cosines * pairs).sum() / pairs.sum().clamp(min=1)

    def mean_age(self) -> Tensor:
        """Return the mean age of the members, in insertions into any class."""
        ages = (self.arrivals - self.arrival) * self.held
        return ages.sum() / self.held.sum().clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Return members, waiting latents, and their order."""
        return {name: getattr(self, name) for name in ("rows", "cosines", "arrival", "held", "arrivals")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name, tensor in state.items():
            setattr(self, name, tensor.to(self.rows.device).clone())


def _unit(latents: Tensor) -> Tensor:
    return F.normalize(at_least_float32(latents.flatten(1)), dim=1)
