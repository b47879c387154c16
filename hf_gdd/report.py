"""Reports of accuracies with their circumstances, and the table of protocols.

This module is longer than others because cards, scripts and every package that measures need all of it, and it may
import nothing but `hf_gdd.utils`.
"""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hf_gdd.utils.io import write_json

RANDOM_REAL, FULL_DATA = "random-real", "full data"
FIXED, SOFT, DYNAMIC, DYNAMIC_BEST5, DYNAMIC_POOL = "fixed", "soft", "dynamic", "dynamic-best5-test", "dynamic-pool-m"
# Names in records of earlier versions, and today's.
FORMER_SAMPLING = {"guidance": "guidance_scale", "steps": "num_inference_steps"}
FORMER_FIELDS = {"normalisation": "normalization"}


@dataclass(frozen=True)
class Protocol:
    """Record of how networks are trained on distilled images, and tested.

    `hf_gdd.evaluation.protocols` runs it.

    Attributes:
        name: name in reports and on the command line; `dynamic-pool-m` stands for a family, with a number for m.
        summary: one line of text for help, cards and docs.
        looks: number of times a network is tested on the test set; its best accuracy counts.
        fresh: True if the images are new in each epoch.
        soft: True if networks learn a teacher's logits instead of the labels.
        sets: number of sets that take turns, one in each epoch, if the images are not fresh.

    Example:
        for protocol in PROTOCOLS.values():
            print(f"{protocol.name}: {protocol.summary}")

    """

    name: str
    summary: str
    looks: int = 1
    fresh: bool = False
    soft: bool = False
    sets: int = 1


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(FIXED, "one set of IPC images per class with hard labels, one test at the end"),
        Protocol(SOFT, "the same set, but networks learn the logits stored with it (Chen et al., 2023)", soft=True),
        Protocol(DYNAMIC, "IPC fresh images per class in each epoch, as papers on generators count IPC", fresh=True),
        Protocol(
            DYNAMIC_BEST5, "as `dynamic`, but the best of five tests counts, as in the DiM code", looks=5, fresh=True
        ),
        Protocol(DYNAMIC_POOL, "m sets of IPC images per class take turns, where sampling is too slow for `dynamic`"),
    )
}
_POOL = re.compile(rf"{DYNAMIC_POOL.removesuffix('m')}([1-9]\d{{0,4}})")


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name, such as `fixed` or `dynamic-pool-5`.

    Raises:
        ValueError: there is no such protocol.

    """
    if match := _POOL.fullmatch(name):
        return replace(PROTOCOLS[DYNAMIC_POOL], name=name, sets=int(match[1]))
    if name not in PROTOCOLS or name == DYNAMIC_POOL:
        known = ", ".join(PROTOCOLS)
        raise ValueError(f"Unknown protocol {name!r}; choose one of {known}, with a number for m as in dynamic-pool-5.")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Result:
    """Accuracies of n networks trained on one set or stream, with their provenance.

    Attributes:
        name: method, `random-real` or `full data`.
        protocol: name of the protocol, see `PROTOCOLS`.
        network: architecture of the networks.
        ipc: images per class; None for full data.
        accuracies: accuracy on the test set of each network, in [0, 1].
        seeds: seed of each network.
        generator_seed: seed of the training that gave the generator; None without one.
        steps: SGD steps of each network.
        distinct_images: number of different images that one network saw.
        stored_bytes: size of the artifact: raw uint8 pixels, and float16 logits if soft; weights for a generator.
        seconds: wall time of all n networks together.
        sampling: settings that changed the generator's pixels, such as "truncation=1.0"; None without a generator.
        generator: fingerprint of the generator; None without one.

    """

    name: str
    protocol: str
    network: str
    ipc: int | None
    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    generator_seed: int | None
    steps: int
    distinct_images: int
    stored_bytes: int
    seconds: float
    sampling: str | None = None
    generator: str | None = None

    @property
    def cell(self) -> tuple[str, str | None, str, str, int | None]:
        """Key of the table row; results with the same key differ only in the generator."""
        return (self.name, self.sampling, self.protocol, self.network, self.ipc)

    @property
    def mean(self) -> float:
        """Mean accuracy in [0, 1]."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over the networks; 0 for a single one."""
        return _deviation(self.accuracies)


@dataclass(frozen=True)
class Quality:
    """Scores of a set of images in the feature spaces of n networks.

    The networks were trained on real images.

    Attributes:
        name: method, `random-real`, `test images`, or `reconstruction` of the test images by an autoencoder.
        ipc: images per class; None for the test images.
        images: number of images.
        network: architecture whose last features are the feature space.
        seeds: seed of each network.
        scores: for each score one value per network: `label_accuracy` is the share of images that the network
            classifies as labeled; the others are explained in `hf_gdd.evaluation.metrics`.
        generator_seed: seed of the training that gave the generator; None without one.
        sampling: settings that changed the generator's pixels; None without a generator.
        generator: fingerprint of the generator; None without one.

    """

    name: str
    ipc: int | None
    images: int
    network: str
    seeds: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    generator_seed: int | None = None
    sampling: str | None = None
    generator: str | None = None

    @property
    def cell(self) -> tuple[Any, ...]:
        """Key of the row; rows with the same key are the same."""
        return (self.name, self.sampling, self.network, self.ipc, self.generator_seed, self.generator)

    def mean(self, score: str) -> float:
        """Return the mean of a score over the networks."""
        return statistics.fmean(self.scores[score])


@dataclass(frozen=True)
class Report:
    """Results with the circumstances they share.

    Attributes:
        results: one per method, protocol, network, IPC and generator.
        train: source and fingerprint of the real training set, or of the evaluated set where no real one was given.
        test: source and fingerprint of the test set.
        recipe: fields of the `Recipe` that trained every network.
        normalization: origin of the statistics that normalize the images.
        device: name of the device.
        versions: versions of the libraries that matter.
        quality: scores of images, where they were asked for.
        shared_draws: True if all networks of a row saw the same batches with the same augmentation.

    Example:
        train, test = (ImageTensors.from_dataset("digits", split) for split in ("train", "test"))
        report = evaluate(train.subset(10, seed=0), test, recipe=Recipe(max_steps=5), n=2)
        report.save("report.json")
        print(Report.load("report.json").markdown())

    """

    results: tuple[Result, ...]
    train: str
    test: str
    recipe: dict[str, Any]
    normalization: str
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    quality: tuple[Quality, ...] = ()
    shared_draws: bool = False

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons not to trust or compare these numbers."""
        floor = self.recipe.get("floor", 0.0)
        problems = [
            f"recipe invalid: {result.network} reaches {result.mean:.1%} on full data, under its floor of {floor:.1%}"
            for result in self._too_weak()
        ]
        baselines = {(r.network, r.ipc, r.protocol == SOFT) for r in self.results if r.name == RANDOM_REAL}
        alone = [r for r in self.results if r.ipc and (r.network, r.ipc, r.protocol == SOFT) not in baselines]
        if any(result.protocol != SOFT for result in alone):
            problems.append("no random-real baseline at the same IPC: pass real= to evaluate")
        if any(result.protocol == SOFT for result in alone):
            problems.append(
                "no random-real baseline with soft labels of the same teacher: evaluate the bank itself, with real="
            )
        return tuple(problems)

    @property
    def valid(self) -> bool | None:
        """True if full data reaches the recipe's floor; None if that was not tested.

        A recipe under its floor is too weak to tell good data from bad.
        """
        return not self._too_weak() if self.find(FULL_DATA) else None

    def _too_weak(self) -> list[Result]:
        return [result for result in self.find(FULL_DATA) if result.mean < self.recipe.get("floor", 0.0)]

    @classmethod
    def merge(cls, reports: Iterable["Report"]) -> "Report":
        """Join reports taken under the same circumstances.

        Raises:
            ValueError: they differ in data, recipe, normalization, device, versions or shared draws, two hold the same
                cell of one generator, or there are none.

        """
        reports = list(reports)
        if not reports:
            raise ValueError("There are no reports to merge.")
        for name in (f.name for f in fields(cls) if f.name not in ("results", "quality")):
            if len({json.dumps(getattr(report, name), sort_keys=True) for report in reports}) > 1:
                raise ValueError(f"Reports that differ in {name!r} cannot be merged: their numbers do not compare.")
        results = [result for report in reports for result in report.results]
        seen = set()
        for result in results:
            key = (*result.cell, result.generator_seed, result.generator)
            if key in seen:
                raise ValueError(
                    f"Two reports hold {result.name!r}, {result.protocol}, IPC {result.ipc}: name them apart."
                )
            seen.add(key)
        quality = {row.cell: row for report in reports for row in report.quality}  # equal cells are equal rows
        return replace(reports[0], results=tuple(results), quality=tuple(quality.values()))

    def find(self, name: str, **where: Any) -> list[Result]:
        """Return the results of a method, narrowed by any other field of `Result`."""
        return [
            result
            for result in self.results
            if result.name == name and all(getattr(result, key) == value for key, value in where.items())
        ]

    def save(self, path: str | Path) -> None:
        """Write as JSON; a process killed meanwhile leaves the old file or the new one."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read a file that `save` wrote, in this version or an earlier one.

        Raises:
            ValueError: the file is not a report.

        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a report of this version of hf_gdd ({error}).") from error

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Report":
        """Build a report from the output of `dataclasses.asdict`, or from saved JSON.

        Raises:
            TypeError: fields are missing or unknown.
            KeyError: there are no results.

        """
        content = {FORMER_FIELDS.get(name, name): value for name, value in content.items()}
        results = [Result(**_row(row) | {"accuracies": tuple(row["accuracies"])}) for row in content.pop("results")]
        quality = [
            Quality(**_row(row) | {"scores": {name: tuple(values) for name, values in row["scores"].items()}})
            for row in content.pop("quality", [])
        ]
        return cls(results=tuple(results), quality=tuple(quality), **content)

    def markdown(self) -> str:
        """Return a table with one row per cell, the circumstances and any problems."""
        header = ["method", "protocol", "IPC", "network", "accuracy %", "nets", "generators", "distinct images"]
        header += ["stored", "steps", "seconds"]
        several = len({result.sampling for result in self.results if result.sampling}) > 1
        rows = [
            _cells([result for result in self.results if result.cell == cell], several)
            for cell in dict.fromkeys(result.cell for result in self.results)
        ]
        parts = [markdown_table(header, rows)] + ([self._quality_table()] if self.quality else [])
        return "\n\n".join([*parts, self._circumstances(), *(f"**{problem}**" for problem in self.problems)])

    def _quality_table(self) -> str:
        scores = list(dict.fromkeys(score for row in self.quality for score in row.scores))
        rows = [
            (
                *(row.name, "-" if row.ipc is None else str(row.ipc), f"{row.images:,}", row.network),
                *(_spread(row.scores.get(score, ())) for score in scores),
            )
            for row in self.quality
        ]
        header = ["images", "IPC", "number", "features", *(score.replace("_", " ") for score in scores)]
        return markdown_table(header, dict.fromkeys(rows))  # generators that share an autoencoder share its row

    def _circumstances(self) -> str:
        recipe = ", ".join(f"{key} {value}" for key, value in self.recipe.items() if value is not False and value != [])
        versions = ", ".join(f"{key} {value}" for key, value in self.versions.items())
        samplings = dict.fromkeys(result.sampling for result in self.results if result.sampling)
        sampling = f"Sampling: {', '.join(samplings)}. " if samplings else ""
        shared = " All networks of a row saw the same draws." if self.shared_draws else ""
        return (
            f"± is the sample deviation over networks; `between` is over generators. Train {self.train}; "
            f"test {self.test}. {sampling}Recipe: {recipe}. Normalized by {self.normalization}.{shared} {self.device}; "
            f"{versions}."
        )

    def __str__(self) -> str:
        """Return a single line."""
        parts = [
            f"{r.name}{f' IPC {r.ipc}' if r.ipc else ''} {r.protocol} {100 * r.mean:.1f}"
            f"{f'±{100 * r.std:.1f}' if len(r.accuracies) > 1 else ''} ({r.network}, n={len(r.accuracies)})"
            for r in self.results
        ]
        return "; ".join([*parts, *(problem.upper() for problem in self.problems)]) + f" [{self.device}]"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table.

    Example:
        markdown_table(["method", "accuracy %"], [["dim", "55.0"], ["random-real", "48.2"]])

    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a saved row, its sampling in today's names."""
    return {**row, "seeds": tuple(row["seeds"]), "sampling": _present_sampling(row.get("sampling"))}


def _present_sampling(text: str | None) -> str | None:
    """Translate "guidance=4.0, steps=50", as earlier versions wrote it."""
    if not text:
        return text
    pairs = (part.partition("=") for part in text.split(", "))
    return ", ".join(FORMER_SAMPLING.get(name, name) + equals + value for name, equals, value in pairs)


def _spread(values: tuple[float, ...]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3g}" + (f" ± {_deviation(values):.2g}" if len(values) > 1 else "")


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _cells(results: list[Result], with_sampling: bool) -> list[str]:
    """Return a table row: the mean over generators, and deviations of two kinds."""
    first, means = results[0], [result.mean for result in results]
    accuracy = f"{100 * statistics.fmean(means):.1f}"
    if len(first.accuracies) > 1:
        accuracy += f" ± {100 * statistics.fmean(r.std for r in results):.1f}"
    if len(results) > 1:
        accuracy += f" (between {100 * _deviation(means):.1f})"
    generators = "-" if first.generator_seed is None else str(len(results))
    return [
        f"{first.name}, {first.sampling}" if with_sampling and first.sampling else first.name,
        first.protocol,
        "all" if first.ipc is None else str(first.ipc),
        first.network,
        accuracy,
        str(len(first.accuracies)),
        generators,
        f"{first.distinct_images:,}",
        f"{first.stored_bytes / 1024:,.0f} KiB",
        f"{first.steps:,}",
        f"{sum(result.seconds for result in results):.0f}",
    ]
