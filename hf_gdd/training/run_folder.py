"""The folder of a run, safe against kills and second processes."""

import json
import logging
import os
import socket
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from hf_gdd.training.config import AUTO, CHOSEN_SETTINGS, LATER_SETTINGS, rename_settings
from hf_gdd.utils.io import disk_full, load_state, save_state, write_json, write_text

logger = logging.getLogger("hf_gdd")

RUN_FILE, METRICS_FILE, LOCK_FILE, OWNER_FILE = "run.yaml", "metrics.jsonl", ".lock", ".owner.json"


class RunFolder:
    """The folder that one run writes to, and resumes from.

    Args:
        path: made if absent.
        identity: primitives that say which run this is; another run's folder is refused.

    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = json.loads(json.dumps(identity))  # tuples become the lists that YAML reads back
        self._lock, self._created = FileLock(self.path / LOCK_FILE), ()

    def check(self) -> None:
        """Refuse the folder before any work if it holds another run.

        Raises:
            ValueError: it does, or it cannot be read.

        """
        if (self.path / RUN_FILE).exists():
            recorded, mine = _read_run(self.path), self.identity["config"]
            for name, value in mine.items():
                # The teacher is trained after all stages, so that a finished run can still be given another.
                finishing = "teacher_network" in mine and name.startswith("teacher_")
                missing = AUTO if name in CHOSEN_SETTINGS or name.startswith(LATER_SETTINGS) else None
                if finishing or recorded["config"].get(name, missing) == AUTO:
                    recorded["config"][name] = value
            if changed := _differences(self.identity, recorded):
                raise ValueError(
                    f"{self.path} holds another run; it differs in {'; '.join(changed)}. Choose another output_dir, "
                    "delete that folder, or repeat its settings to resume it."
                )
        elif self._checkpoints():
            raise ValueError(
                f"{self.path} holds checkpoints but no {RUN_FILE}, so it is unknown which run they belong to: choose "
                "another output_dir, or delete that folder."
            )

    def lock(self) -> None:
        """Keep other processes out until `unlock`, or the end of this process.

        Raises:
            ValueError: another process trains in it, or it cannot be written.

        """
        self.unlock()
        try:
            self._created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            for folder in (self.path, self.path / "checkpoints"):
                for leftover in folder.glob("*.part"):  # of a process that was killed
                    if leftover.is_file():  # `atomic_folder` clears its own folders
                        leftover.unlink(missing_ok=True)
            write_json(self.path / OWNER_FILE, {"process": os.getpid(), "machine": socket.gethostname()})
        except Timeout as error:
            raise ValueError(
                f"{self.path} is in use by {self._owner()}: wait for it, stop it, or choose another output_dir."
            ) from error
        except OSError as error:
            self.unlock()
            raise ValueError(f"Cannot write to the output folder {self.path} ({error}): choose another.") from error

    def unlock(self) -> None:
        """Let other processes use the folder.

        A folder that `lock` created and nothing was written to is removed.
        """
        if not self._lock.is_locked:
            return
        with suppress(OSError):  # the folder may be gone, or in use by another process
            (self.path / OWNER_FILE).unlink(missing_ok=True)
            if self._created and [path.name for path in self.path.iterdir()] == [LOCK_FILE]:
                (self.path / LOCK_FILE).unlink()
                for folder in self._created:
                    folder.rmdir()
        self._lock.release()

    def _owner(self) -> str:
        try:
            owner = json.loads((self.path / OWNER_FILE).read_text())
            return f"process {int(owner['process'])} on {owner['machine']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def claim(self) -> None:
        """Record in the folder which run it holds.

        Raises:
            ValueError: it holds another run, or cannot be written.

        """
        self.check()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_text(self.path / RUN_FILE, yaml.safe_dump(self.identity, sort_keys=False))
        except OSError as error:
            raise ValueError(f"Cannot write to the output folder {self.path} ({error}): choose another.") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        with (self.path / METRICS_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self, until: int | None = None) -> list[dict[str, Any]]:
        """Return the metrics logged so far.

        Args:
            until: a step; what was logged after it is deleted first.

        """
        path = self.path / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]  # a kill can cut the last line short
        if until is not None:
            records = [record for record in records if record["step"] <= until]
            write_text(path, "".join(json.dumps(record) + "\n" for record in records))
        return records

    def save_checkpoint(self, step: int, state: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint whole or not at all, and delete old ones.

        Args:
            step: steps taken in all stages.
            state: tensors and primitives.
            keep: how many remain, the newest; only one if the disk is full.

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
        """Return the path of the newest checkpoint, or None."""
        return next(reversed(self._checkpoints()), None)

    def last_checkpoint(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Return the newest readable checkpoint, or None; warn of unreadable ones."""
        for path in reversed(self._checkpoints()):
            try:
                return load_state(path, device)
            except ValueError as error:
                warnings.warn(f"{error} Falling back to the checkpoint before it.", stacklevel=2)
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*.pt"))


def stage_file(path: str | Path, stage: str) -> Path:
    """Return where a run's folder has the state at the end of a stage."""
    return Path(path) / "checkpoints" / f"stage-{stage}.pt"


def read_run(path: str | Path) -> dict[str, Any]:
    """Read the identity of a run from its folder, or from a YAML or JSON file.

    Settings of earlier versions get their present names.

    Raises:
        ValueError: there is none, or it is not one.

    """
    run = _read_run(Path(path))
    for name in CHOSEN_SETTINGS:
        if run["config"].get(name) == AUTO:
            run["config"][name] = "no"
            logger.warning("%s: %s is no longer chosen by timing: `%s` is now `no`.", path, name, AUTO)
    return run


def _read_run(path: Path) -> dict[str, Any]:
    path = path / RUN_FILE if path.is_dir() else path
    try:
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict) or not {"trainer", "config"} <= content.keys():
            raise ValueError("it has no trainer and config")
        return content | {"config": rename_settings(content["config"])}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} is not the file of a run ({error}): pass the {RUN_FILE} of a run's folder."
        ) from error


def _differences(mine: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List `name (now 1, there 2)` for each differing value; nested names are dotted."""
    changed = []
    for name in dict.fromkeys([*mine, *other]):
        a, b = mine.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            changed.append(f"{prefix}{name} (now {a!r}, there {b!r})")
    return changed
