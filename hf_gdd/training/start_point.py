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
        equal_settings: names of settings that shape these stages, which must be equal.
        restored_parts: names of the tracked parts that are taken over.
        length_settings: names of settings that say how long these stages were.

    """

    folder: str
    stage: str
    equal_settings: tuple[str, ...]
    restored_parts: frozenset[str]
    length_settings: tuple[str, ...]

    def load(self, identity: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the state at the end of the stage.

        Args:
            identity: of the run that starts from here.
            device: where tensors are put.

        Raises:
            ValueError: the run is of another method, on other data, had other settings, or has not finished the stage.

        """
        other, label = read_run(self.folder), f"start_from={self.folder!r}"
        remedies = {
            "trainer": "pass a run of the same method",
            "fingerprint": "pass one on the same data",
            "held_out": "train both with `validate` and an equal held_out, or both without",
        }
        for name, remedy in remedies.items():
            if other.get(name) != identity.get(name):
                raise ValueError(f"{label} is a run with another {name}: {remedy}.")
        for name in self.equal_settings:
            theirs, mine = other["config"].get(name), identity["config"][name]
            if theirs != mine:
                raise ValueError(
                    f"{label} was trained with {name}={theirs!r}, not {mine!r}: so its first stages cannot be reused."
                )
        if not stage_file(self.folder, self.stage).is_file():
            raise ValueError(f"{label} has not finished stage {self.stage!r}: resume it first.")
        return load_state(stage_file(self.folder, self.stage), device)

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Replace the lengths of skipped stages by those of the run they came from."""
        config, lengths = read_run(self.folder)["config"], self.length_settings
        first = {name: config.get(name) for name in (*lengths, "max_steps")}
        return {name: value for name, value in settings.items() if name not in lengths} | {"start_from": first}
