"""Results of the paper's experiments, as `run.py` recorded them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import SIZES, VARIANTS, Experiment, experiments

from hf_gdd import GlobalLocalTrainer
from hf_gdd.report import Report, Result
from hf_gdd.training.config import LATER_SETTINGS

RESULTS = Path(__file__).parent / "results"
OF_ONE_TRAINING = ("seed", "image_size", "start_from")  # settings that a size does not decide


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

    def rows(self, data: str, name: str, protocol: str, ipc: int | None) -> list[Result]:
        """Return the rows of one cell, one for each generator."""
        where = {"protocol": protocol, "ipc": ipc, "network": SIZES[self.size].network}
        reports = [r["report"] for e, r in self.finished.items() if e.data == data and "report" in r]
        return [row for report in reports for row in report.find(name, **where)]


def load(folder: Path, size: str) -> Results:
    """Read all results of a size.

    Raises:
        ValueError: an experiment had other settings than the size has now.

    """
    records = {}
    for experiment in experiments(size):
        path = folder / f"{experiment.name}.json"
        records[experiment] = record = json.loads(path.read_text()) if path.is_file() else None
        if record and "report" in record:
            record["report"] = Report.from_dict(record["report"])
        if record:
            require_size(experiment, record)
    return Results(size, records)


def require_size(experiment: Experiment, record: Mapping[str, Any]) -> None:
    """Refuse a result whose settings are not those that its size has now.

    Raises:
        ValueError: they differ.

    """
    size = SIZES[experiment.size]
    if report := record.get("report"):
        measured = {"recipe": report.recipe, "shared_draws": report.shared_draws}
        measured["n"] = sorted({len(row.accuracies) for row in report.results})
        now = {"recipe": size.recipe_for(experiment.data).identity(), "shared_draws": size.shared_draws, "n": [size.n]}
    else:
        measured = record["run"]["config"]
        now = GlobalLocalTrainer.configure(**size.settings(VARIANTS[experiment.variant])).identity()
        auto = {name for name in now if measured.get(name, "auto") == "auto"}  # as earlier versions recorded choices
        later = {name for name in now if name.startswith((*LATER_SETTINGS, "teacher_")) and name not in measured}
        now = {name: value for name, value in now.items() if name not in {*OF_ONE_TRAINING, *auto, *later}}
    for name, value in json.loads(json.dumps(now)).items():  # as it is read back
        if measured[name] != value:
            raise ValueError(
                f"{experiment.name} was run with {name} {measured[name]!r}, but size {experiment.size} has "
                f"{value!r}: delete its JSON, or give the size that setting back."
            )
