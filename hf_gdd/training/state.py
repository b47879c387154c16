"""Progress of a run, and the order of its batches."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hf_gdd.utils.random import Random

_FORMER_NAMES = {"total": "global_step"}  # of fields, in checkpoints of earlier versions


@dataclass
class TrainerState:
    """Progress of a run.

    Attributes:
        stage: number of the current stage, from 0.
        step: steps taken in this stage.
        global_step: steps taken in all stages.
        seconds: training time; pictures and checkpoints excluded.
        best: best validation score so far.

    """

    stage: int = 0
    step: int = 0
    global_step: int = 0
    seconds: float = 0.0
    best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the fields."""
        vars(self).update({_FORMER_NAMES.get(name, name): value for name, value in state.items()})


class BatchSampler:
    """Row numbers for the batches of one epoch after another.

    Each epoch is a fresh permutation without its incomplete last batch.

    Args:
        rows: number of rows in the data set.
        random: draws the permutations.

    """

    def __init__(self, rows: int, random: Random) -> None:
        self.rows, self.random = rows, random
        self.order, self.position = torch.empty(0, dtype=torch.int64), 0

    def next(self, size: int) -> Tensor:
        """Return the next `size` row numbers, int64 [size]."""
        if self.ends(size):
            rng = self.random.rng
            self.order = torch.randperm(self.rows, generator=rng, device=rng.device)
            self.position = 0
        self.position += size
        return self.order[self.position - size : self.position]

    def ends(self, size: int) -> bool:
        """Return True if the next `size` rows would begin another epoch."""
        return self.position + size > len(self.order)

    def state_dict(self) -> dict[str, Any]:
        """Return the permutation and the position in it."""
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.order, self.position = state["order"].to(self.random.rng.device), state["position"]
