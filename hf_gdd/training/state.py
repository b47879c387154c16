"""Where a run is, which rows come next, and whether it was asked to stop."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_gdd.utils.random import Random


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop by signal `signum`; it saved a checkpoint in `folder` first."""

    def __init__(self, signum: int, step: int, folder: Path) -> None:
        script = Path(sys.argv[0]).name
        command = shlex.join([script, *sys.argv[1:]] if script == "hf-gdd" else sys.orig_argv)
        again = "call fit() again" if "ipykernel" in sys.modules else f"run the same command again: {command}"
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            again += " (under the same launcher)"
        super().__init__(
            f"{signal.Signals(signum).name}: stopped after step {step}, saved in {folder}. To resume, {again}"
        )
        self.signum = signum


@dataclass
class Place:
    """Where a run is.

    Attributes:
        stage: number of the stage.
        step: steps taken in it.
        total: steps taken in all stages.
        seconds: training time, pictures and checkpoints excluded.
        best: the best validation score so far.

    """

    stage: int = 0
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a place."""
        vars(self).update(state)


class Batches:
    """Row numbers of one epoch after another, each a fresh permutation whose incomplete last batch is dropped."""

    def __init__(self, rows: int, random: Random) -> None:
        self.rows, self.random = rows, random
        self.order, self.position = torch.empty(0, dtype=torch.int64), 0

    def next(self, size: int) -> Tensor:
        """The next `size` row numbers."""
        if self.ends(size):
            generator = self.random.device
            self.order = torch.randperm(self.rows, generator=generator, device=generator.device)
            self.position = 0
        self.position += size
        return self.order[self.position - size : self.position]

    def ends(self, size: int) -> bool:
        """Whether the next `size` would begin another epoch."""
        return self.position + size > len(self.order)

    def state_dict(self) -> dict[str, Any]:
        """The permutation and the place in it."""
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.order, self.position = state["order"].to(self.random.device.device), state["position"]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The signals SIGINT and SIGTERM received so far; the same signal again stops at once, as it would have."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {}

    def remember(signum: int, frame: Any) -> None:
        received.append(signum)
        signal.signal(signum, previous[signum])

    previous = {signum: signal.signal(signum, remember) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
