"""Start a run from the first stages of another one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_gdd.training.run_folder import read_run, stage_file
from hf_gdd.utils.io import load_state


@dataclass(frozen=True)
class StartPoint:
    """A finished run whose first stages replace those of another run.

    Attributes:
        folder: the run's folder.
        stage: the last stage that is taken over.
        settings: names of settings that shape these stages, which must be equal.
        parts: names of the tracked parts that are taken over.
        lengths: names of settings that say how long these stages were.

    """

    folder: str
    stage: str
    settings: tuple[str, ...]
    parts: frozenset[str]
    lengths: tuple[str, ...]

    def load(self, identity: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the state at the end of the stage.

        Args:
            identity: of the run that starts from here.
            device: where tensors are put.

        Raises:
            ValueError: the run is of another method, on other data, had other settings, or has not finished the stage.

        """
        other, place = read_run(self.folder), f"start_from={self.folder!r}"
        for name in ("trainer", "fingerprint", "held_out"):
            if other.get(name) != identity.get(name):
                raise ValueError(f"{place} is a run with another {name}; pass one on the same data.")
        for name in self.settings:
            theirs, mine = other["config"].get(name), identity["config"][name]
            if theirs != mine:
                raise ValueError(f"{place} was trained with {name}={theirs!r}, not {mine!r}: its stages are others.")
        if not stage_file(self.folder, self.stage).is_file():
            raise ValueError(f"{place} has not finished stage {self.stage!r}: resume it first.")
        return load_state(stage_file(self.folder, self.stage), device)

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return settings of a run that started here, with the lengths of the stages taken over instead of its own."""
        config = read_run(self.folder)["config"]
        first = {name: config.get(name) for name in (*self.lengths, "max_steps")}
        return {name: value for name, value in settings.items() if name not in self.lengths} | {"start_from": first}
