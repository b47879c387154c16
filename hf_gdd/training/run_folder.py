"""A run's folder: what the run is, what it measured, and checkpoints that survive being killed."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hf_gdd.training.errors import disk_full

RUN_FILE, METRICS_FILE = "run.yaml", "metrics.jsonl"


class RunFolder:
    """The folder one run writes to, and resumes from.

    Args:
        path: made if absent.
        identity: primitives that say which run this is; another run's folder is refused.

    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = json.loads(json.dumps(identity))  # tuples become the lists that YAML reads back

    def check(self) -> None:
        """Refuse the folder before any work if it holds another run.

        Raises:
            ValueError: it does, or it cannot be read.

        """
        if (self.path / RUN_FILE).exists():
            changed = _differences(self.identity, read_run(self.path))
            if changed:
                raise ValueError(
                    f"{self.path} holds another run; it differs in {'; '.join(changed)}. Choose another output_dir, "
                    "delete that folder, or repeat its settings to resume it."
                )
        elif self._checkpoints():
            raise ValueError(
                f"{self.path} holds checkpoints but no {RUN_FILE}, so whose they are is unknown: choose another "
                "output_dir, or delete that folder."
            )

    def claim(self) -> None:
        """Make the folder this run's own.

        Raises:
            ValueError: it holds another run, or cannot be written.

        """
        self.check()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            _write_atomically(self.path / RUN_FILE, yaml.safe_dump(self.identity, sort_keys=False).encode())
        except OSError as error:
            raise ValueError(f"Cannot write to the output folder {self.path} ({error}): choose another.") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        with (self.path / METRICS_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self, until: int | None = None) -> list[dict[str, Any]]:
        """The metrics logged so far; with `until`, those after that step are deleted first."""
        path = self.path / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]  # a kill can cut the last line short
        if until is not None:
            records = [record for record in records if record["step"] <= until]
            _write_atomically(path, "".join(json.dumps(record) + "\n" for record in records).encode())
        return records

    def save_checkpoint(self, step: int, state: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint whole or not at all; only the newest `keep` remain, or one if the disk is full.

        Raises:
            OSError: it cannot be written.

        """
        path = self.path / "checkpoints" / f"step-{step:09d}.pt"
        try:
            save_state(path, state)
        except OSError as error:
            older = self._checkpoints()[:-1]
            if not disk_full(error) or not older:
                raise
            for old in older:
                old.unlink()
            save_state(path, state)
        for old in self._checkpoints()[:-keep]:
            old.unlink()
        return path

    def newest_checkpoint(self) -> Path | None:
        """The path of the newest checkpoint."""
        return next(reversed(self._checkpoints()), None)

    def last_checkpoint(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None; one that cannot is passed over with a warning."""
        for path in reversed(self._checkpoints()):
            try:
                return load_state(path, device)
            except ValueError as error:
                warnings.warn(f"{error} Falling back to the checkpoint before it.", stacklevel=2)
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*.pt"))


def stage_file(path: str | Path, stage: str) -> Path:
    """Where a run's folder keeps the state at the end of a stage."""
    return Path(path) / "checkpoints" / f"stage-{stage}.pt"


def read_run(path: str | Path) -> dict[str, Any]:
    """The identity of a run from its folder, or from a YAML or JSON file.

    Raises:
        ValueError: there is none, or it is not one.

    """
    path = Path(path)
    path = path / RUN_FILE if path.is_dir() else path
    try:
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict) or not {"trainer", "config"} <= content.keys():
            raise ValueError("it has no trainer and config")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} is not the file of a run ({error}): pass the {RUN_FILE} of a run's folder."
        ) from error
    return content


def check_start(folder: str | Path, mine: Mapping[str, Any], stage: str, settings: Sequence[str]) -> None:
    """Refuse to take over the stages of another run, up to `stage`, if they are not what this one's would be.

    Raises:
        ValueError: it is of another method or on other data, was told otherwise, or has not finished them.

    """
    other = read_run(folder)
    for name in ("trainer", "fingerprint", "held_out"):
        if other.get(name) != mine.get(name):
            raise ValueError(f"start_from={folder!r} is a run with another {name}; pass one on the same data.")
    for name in settings:
        if other["config"].get(name) != mine["config"][name]:
            raise ValueError(
                f"start_from={folder!r} was trained with {name}={other['config'].get(name)!r}, not "
                f"{mine['config'][name]!r}: its first stage is another one."
            )
    if not stage_file(folder, stage).is_file():
        raise ValueError(f"start_from={folder!r} has not finished its first stage: resume it first.")


def start_settings(settings: dict[str, Any], folder: str | None, lengths: Sequence[str]) -> dict[str, Any]:
    """The settings of a run, those in `lengths` told by the run it took its first stages from, if it did."""
    if not folder:
        return settings
    first = {name: read_run(folder)["config"].get(name) for name in (*lengths, "max_steps")}
    return {name: value for name, value in settings.items() if name not in lengths} | {"start_from": first}


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and primitives in one file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        if isinstance(error.__context__, OSError):  # torch's writer hides what the file said
            raise error.__context__ from None
        raise


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote; runs no code from the file.

    Raises:
        ValueError: the file is absent or damaged.

    """
    if torch.device(device).type == "cpu":
        device = "cpu"  # a launcher's process is on cpu:0, where torch cannot restore anything
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a cut zip file surfaces as any of half a dozen types
        raise ValueError(f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}).") from error


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _differences(mine: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name (now 1, there 2)` for every value that differs, nested mappings by dotted names."""
    found = []
    for name in dict.fromkeys([*mine, *other]):
        a, b = mine.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} (now {a!r}, there {b!r})")
    return found
