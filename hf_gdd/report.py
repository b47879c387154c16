"""Report: accuracies that carry everything needed to judge them, as JSON and as a table."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

RANDOM_REAL, FULL_DATA, SOFT = "random-real", "full data", "soft"
# Names in records of earlier versions, and today's.
FORMER_SAMPLING = {"guidance": "guidance_scale", "steps": "num_inference_steps"}


@dataclass(frozen=True)
class Result:
    """The accuracy of n networks trained on one set or stream, all fields needed to repeat it.

    Attributes:
        name: the method, `random-real` or `full data`.
        protocol: `fixed`, `soft`, `dynamic`, `dynamic-best5-test` or `dynamic-pool-m`, see `hf_gdd.evaluate`.
        network: the architecture trained.
        ipc: images per class; None for full data.
        accuracies: on the test set, one per network, in [0, 1].
        seeds: of the networks, one per accuracy.
        generator_seed: of the training that made the generator; None where there is none.
        steps: SGD steps of each network.
        distinct_images: how many different images one network saw.
        stored_bytes: of the artifact: raw uint8 pixels for a set, and float16 logits under `soft`; weights for a
            generator.
        seconds: wall time of all n networks together.
        sampling: what changed the generator's pixels, such as "truncation=1.0"; None where there is no generator.
        generator: its fingerprint: these weights and no others were judged.

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
        """What is compared: results of one cell differ only in the generator's seed."""
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
    """How good a set of images is, whatever is trained on it, in the feature spaces of n networks trained on real ones.

    Attributes:
        name: the method, `random-real`, `test images`, or `reconstruction` of the test images by an autoencoder.
        ipc: images per class; None for the test images.
        images: how many were judged.
        network: the architecture whose last features are the feature space.
        seeds: of the networks.
        scores: for each score one value per network: `label_accuracy` is the share of the images that the network
            takes for what they are labeled; `diversity` is `hf_gdd.evaluation.metrics.class_diversity`; the others compare with
            the test images and are `coverage_scores` and `frechet_distance` of that module.
        generator_seed: of the training that made the generator; None where there is none.
        sampling: what changed the generator's pixels; None where there is no generator.
        generator: its fingerprint.

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
        """What makes it this row and no other."""
        return (self.name, self.sampling, self.network, self.ipc, self.generator_seed, self.generator)

    def mean(self, score: str) -> float:
        """The mean of a score over the networks."""
        return statistics.fmean(self.scores[score])


@dataclass(frozen=True)
class Report:
    """Results with the circumstances they share.

    Attributes:
        results: one per (method, protocol, network, IPC, generator seed).
        train: source and fingerprint of the real training set, or of the set evaluated if no real one was given.
        test: source and fingerprint of the test set.
        recipe: fields of the `Recipe` every network was trained by.
        normalization: where the statistics that images are normalized by came from.
        device: the device's name.
        versions: of the libraries that matter.
        quality: of sets of images, where it was asked for.
        shared_draws: whether all networks of a row saw the same batches, augmented alike.

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
        """Why these numbers must not be trusted or compared, if anything."""
        floor = self.recipe.get("floor", 0.0)
        found = [
            f"recipe invalid: {result.network} reaches {result.mean:.1%} on full data, under its floor of {floor:.1%}"
            for result in self._too_weak()
        ]
        baselines = {(r.network, r.ipc, r.protocol == SOFT) for r in self.results if r.name == RANDOM_REAL}
        alone = [r for r in self.results if r.ipc and (r.network, r.ipc, r.protocol == SOFT) not in baselines]
        if any(result.protocol != SOFT for result in alone):
            found.append("no random-real baseline at the same IPC: pass real= to evaluate")
        if any(result.protocol == SOFT for result in alone):
            found.append(
                "no random-real baseline with soft labels of the same teacher: evaluate the bank itself, with real="
            )
        return tuple(found)

    @property
    def valid(self) -> bool | None:
        """Whether the recipe can tell good data from bad: full data reaches its floor. None if that was not tested."""
        return not self._too_weak() if self.find(FULL_DATA) else None

    def _too_weak(self) -> list[Result]:
        return [result for result in self.find(FULL_DATA) if result.mean < self.recipe.get("floor", 0.0)]

    @classmethod
    def merge(cls, reports: Iterable["Report"]) -> "Report":
        """One report of several taken under the same circumstances.

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
        shared = {f.name: getattr(reports[0], f.name) for f in fields(cls)}
        return cls(**shared | {"results": tuple(results), "quality": tuple(quality.values())})

    def find(self, name: str, **where: Any) -> list[Result]:
        """The results of a method, narrowed by any other field of `Result`."""
        return [
            result
            for result in self.results
            if result.name == name and all(getattr(result, key) == value for key, value in where.items())
        ]

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a report.

        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a report of this version of hf_gdd ({error}).") from error

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Report":
        """The report of what `dataclasses.asdict` made of one, also after it was JSON.

        Raises:
            TypeError: fields are missing, or there are others.
            KeyError: there are no results.

        """
        content = dict(content)
        results = [
            Result(**r | {"accuracies": tuple(r["accuracies"]), "seeds": tuple(r["seeds"])})
            for r in content.pop("results")
        ]
        quality = [
            Quality(**row | {"seeds": tuple(row["seeds"]), "scores": {k: tuple(v) for k, v in row["scores"].items()}})
            for row in content.pop("quality", [])
        ]
        return cls(results=tuple(results), quality=tuple(quality), **content)

    def markdown(self) -> str:
        """The table, one row a cell, with the circumstances and any problem under it."""
        header = [
            "method",
            "protocol",
            "IPC",
            "network",
            "accuracy %",
            "nets",
            "generators",
            "distinct images",
        ]
        header += ["stored", "steps", "seconds"]
        lines = [" | ".join(header), " | ".join(["---"] * len(header))]
        several = len({result.sampling for result in self.results if result.sampling}) > 1
        for cell in dict.fromkeys(result.cell for result in self.results):
            lines.append(" | ".join(_row([result for result in self.results if result.cell == cell], several)))
        tables = ["\n".join(f"| {line} |" for line in lines), *self._quality_table()]
        return "\n\n".join([*tables, self._circumstances(), *(f"**{problem}**" for problem in self.problems)])

    def _quality_table(self) -> list[str]:
        if not self.quality:
            return []
        scores = list(dict.fromkeys(score for row in self.quality for score in row.scores))
        header = ["images", "IPC", "number", "features", *(score.replace("_", " ") for score in scores)]
        lines = [" | ".join(header), " | ".join(["---"] * len(header))]
        for row in self.quality:
            cells = [row.name, "-" if row.ipc is None else str(row.ipc), f"{row.images:,}", row.network]
            lines.append(" | ".join([*cells, *(_spread(row.scores.get(score, ())) for score in scores)]))
        lines = dict.fromkeys(lines)  # generators that share an autoencoder share its row
        return ["\n".join(f"| {line} |" for line in lines)]

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
        """One line a person reads."""
        parts = [
            f"{r.name}{f' IPC {r.ipc}' if r.ipc else ''} {r.protocol} {100 * r.mean:.1f}"
            f"{f'±{100 * r.std:.1f}' if len(r.accuracies) > 1 else ''} ({r.network}, n={len(r.accuracies)})"
            for r in self.results
        ]
        return "; ".join([*parts, *(problem.upper() for problem in self.problems)]) + f" [{self.device}]"


def _spread(values: tuple[float, ...]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3g}" + (f" ± {_deviation(values):.2g}" if len(values) > 1 else "")


def _deviation(values: Iterable[float]) -> float:
    values = tuple(values)
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _row(results: list[Result], with_sampling: bool) -> list[str]:
    """One cell: the mean over generators, deviations over networks and over generators kept apart."""
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
