"""Results of the paper's experiments: what `run.py` records, and how it is read."""

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from experiments import SIZES, VARIANTS, Experiment, experiments

from hf_gdd import GlobalLocalTrainer
from hf_gdd.report import Report, Result
from hf_gdd.training.config import ADDED_SETTINGS, migrate_settings

RESULTS = Path(__file__).parent / "results"
OF_ONE_TRAINING = ("seed", "image_size", "start_from")  # settings that a size does not decide
DESCRIBE = "git describe --always --dirty --abbrev=40 --exclude='*'"
# Remarks on copies of data sets, by the fingerprint of their training images.
CAVEATS = {
    "909d9cd87a30b2f072f6591ca29be10ae6bfa751b836b0aa939ad2de0f3f0ab4": (
        "CIFAR-10 here is a copy that went through JPEG (quality about 75), for training and test alike."
    )
}


@dataclass(frozen=True)
class Results:
    """Everything that has been measured at one size.

    Attributes:
        size: name in `SIZES`.
        records: every experiment of the size with the content of its JSON; None if it was not run.

    """

    size: str
    records: Mapping[Experiment, dict[str, Any] | None]

    @property
    def finished(self) -> dict[Experiment, dict[str, Any]]:
        """Experiments that were run."""
        return {experiment: record for experiment, record in self.records.items() if record}

    def has(self, data: str | None = None, kind: str | None = None) -> bool:
        """Return True if an experiment on this data set, of this kind, was run."""
        return any(data in (None, each.data) and kind in (None, each.kind) for each in self.finished)

    def rows(self, data: str, name: str, protocol: str, ipc: int | None, network: str | None = None) -> list[Result]:
        """Return the rows of one cell, one for each generator."""
        where = {"protocol": protocol, "ipc": ipc, "network": network or SIZES[self.size].network}
        reports = [r["report"] for e, r in self.finished.items() if e.data == data and "report" in r]
        return [row for report in reports for row in report.find(name, **where)]


def load(folder: Path, size: str) -> Results:
    """Read all results of a size.

    Raises:
        ValueError: experiments on one data set had different data, or one had other settings than the size has now.

    """
    records, data = {}, {}
    for experiment in experiments(size):
        path = folder / f"{experiment.name}.json"
        records[experiment] = record = json.loads(path.read_text()) if path.is_file() else None
        if record is None:
            continue
        images = {split: record["data"][split] for split in ("train", "test")}
        if data.setdefault(experiment.data, images) != images:
            raise ValueError(f"{experiment.name} used other images than the {experiment.data} experiments before it.")
        if "report" in record:
            record["report"] = report_of(experiment, record)
        require_size(experiment, record)
    return Results(size, records)


def report_of(experiment: Experiment, record: Mapping[str, Any]) -> Report:
    """Return the report of an evaluation with today's floor, which does not influence how rows are measured."""
    report = Report.from_dict(record["report"])
    floor = SIZES[experiment.size].recipe_for(experiment.data).floor
    return replace(report, recipe=report.recipe | {"floor": floor})


def require_size(experiment: Experiment, record: Mapping[str, Any]) -> None:
    """Refuse a result whose settings are not those that its size has now.

    Raises:
        ValueError: they differ.

    """
    size = SIZES[experiment.size]
    if "report" in record:
        report = record["report"]
        measured = {"recipe": report.recipe, "shared_draws": report.shared_draws}
        measured["n"] = sorted({len(row.accuracies) for row in report.results})
        measured["networks"] = sorted({row.network for row in report.results})
        now = {"recipe": asdict(size.recipe_for(experiment.data)), "shared_draws": size.shared_draws, "n": [size.n]}
        now["networks"] = sorted(experiment.networks or (size.network,))
    else:
        now = GlobalLocalTrainer.configure(**size.settings(VARIANTS[experiment.variant])).identity()
        now = {name: value for name, value in now.items() if name not in OF_ONE_TRAINING}
        measured, _ = migrate_settings(record["run"]["config"])
        measured = {name: now[name] for name in ADDED_SETTINGS & now.keys()} | measured
    for name, value in json.loads(json.dumps(now)).items():  # as it is read back
        if measured.get(name) != value:
            raise ValueError(
                f"{experiment.name} was run with {name} {measured.get(name)!r}, but size {experiment.size} has "
                f"{value!r}: delete its JSON, or give the size that setting back."
            )


def environment() -> dict[str, Any]:
    """Return command, commit, device and versions; folders of the command appear by their last name only."""
    cpu = f"CPU {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    words = [re.sub(r"(^|=)(?:/|\.\./).*/(?=.)", r"\1", word) for word in sys.argv[1:]]
    packages = ("hf_gdd", "torch", "datasets", "diffusers", "accelerate", "numpy")
    git = subprocess.run(DESCRIBE, shell=True, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return {
        "command": shlex.join(["python", "scripts/paper/run.py", *words]),
        "commit": git.stdout.strip() or None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
