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

from hf_gdd.utils.comparison import Difference, deviation, verdicts
from hf_gdd.utils.io import write_json

RANDOM_REAL, FULL_DATA, TEACHER, HERDING, K_CENTER = "random-real", "full data", "teacher", "herding", "k-center"
REFERENCES = (RANDOM_REAL, FULL_DATA, TEACHER, HERDING, K_CENTER)  # rows of real images, with which others compare
FIXED, SOFT, DYNAMIC, DYNAMIC_SOFT = "fixed", "soft", "dynamic", "dynamic-soft"
DYNAMIC_BEST5, DYNAMIC_POOL = "dynamic-best5-test", "dynamic-pool-m"
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

    @property
    def distilled(self) -> bool:
        """True if images are the distilled ones, where there are any."""
        return not self.name.startswith(DYNAMIC)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(FIXED, "one set of IPC images per class with hard labels, one test at the end"),
        Protocol(SOFT, "the same set, but networks learn the logits stored with it (Chen et al., 2023)", soft=True),
        Protocol(DYNAMIC, "IPC fresh images per class in each epoch, as papers on generators count IPC", fresh=True),
        Protocol(
            DYNAMIC_SOFT, "as `dynamic`, but networks learn a teacher's logits of the images", fresh=True, soft=True
        ),
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


def _is_soft(name: str) -> bool:
    """Return True for a protocol with soft labels.

    Reports may have protocols that this version does not know.
    """
    return name in PROTOCOLS and PROTOCOLS[name].soft


@dataclass(frozen=True)
class Result:
    """Accuracies of n networks trained on one set or stream, with their provenance.

    Attributes:
        name: method, or one of `REFERENCES`; `teacher` is the network itself that gave the soft labels.
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
        stored_parts: bytes of `codes`, `generator` and `teacher`, as far as the images and labels come from them; None
            without a generator.

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
    stored_parts: dict[str, int] | None = None

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
        return deviation(self.accuracies)


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
        alone = {_is_soft(r.protocol) for r in self.results if r.ipc and not self._random_real(r)}
        if False in alone:
            problems.append("no random-real baseline at the same IPC: pass real= to evaluate")
        if True in alone:
            problems.append(
                "no random-real baseline with soft labels of the same teacher: evaluate the generator, with real="
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

    def gain(self, result: Result) -> Difference | None:
        """Return the gain of a row over random real images.

        They are of the same network, IPC and kind of labels. The gain is a difference of mean accuracies, in [-1, 1],
        over the networks of all generators of the row. It is None for random real images themselves, and where there
        are none to compare with.
        """
        real = [share for row in self._random_real(result) for share in row.accuracies]
        if result.name == RANDOM_REAL or result.ipc is None or not real:
            return None
        ours = [share for row in self.results if row.cell == result.cell for share in row.accuracies]
        return Difference.between(ours, real)

    def _random_real(self, result: Result) -> list[Result]:
        """Return the rows of random real images beside which a row stands."""
        soft = _is_soft(result.protocol)
        rows = self.find(RANDOM_REAL, network=result.network, ipc=result.ipc)
        return [row for row in rows if _is_soft(row.protocol) == soft]

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
        """Return a verdict, a table with one row per cell, circumstances and problems.

        The verdict is one line: at which IPC each set of images beats as many random real ones.
        """
        header = ["method", "protocol", "IPC", "network", "accuracy %", "gain", "nets", "generators"]
        header += ["distinct images", "stored", "steps", "seconds"]
        rows = [
            _cells([result for result in self.results if result.cell == cell], self._label(cell[0], cell[1]), gain)
            for cell, gain in ((result.cell, self.gain(result)) for result in self._first_of_each_cell())
        ]
        verdict = self.verdict()
        parts = [*([verdict] if verdict else []), markdown_table(header, rows)]
        parts += [self._quality_table()] if self.quality else []
        return "\n\n".join([*parts, self._circumstances(), *(f"**{problem}**" for problem in self.problems)])

    def verdict(self) -> str:
        """Return in words at which IPC each set beats random real images.

        The text is empty without random real images. A set beats them if its gain is over two standard errors.
        Protocols with fresh images are left out.
        """
        sentences, several = [], len({row.network for row in self.results if row.name not in REFERENCES}) > 1
        for protocol, labels in ((FIXED, "hard"), (SOFT, "soft")):
            gains: dict[str, dict[int, Difference]] = {}
            for result in self._first_of_each_cell():
                gain = self.gain(result) if result.protocol == protocol and result.name not in REFERENCES else None
                if gain is not None:
                    name = self._label(result.name, result.sampling) + f" ({result.network})" * several
                    gains.setdefault(name, {})[result.ipc] = gain
            if gains:
                words = "; ".join(f"{name} {verdicts(each, 'IPC')}" for name, each in gains.items())
                sentences.append(f"Against random real images with {labels} labels: {words}.")
        return " ".join(sentences)

    def _first_of_each_cell(self) -> list[Result]:
        rows: dict[Any, Result] = {}
        for result in self.results:
            rows.setdefault(result.cell, result)
        return list(rows.values())

    def _label(self, name: str, sampling: str | None) -> str:
        """Return a row's name, with those of its sampling settings in which rows differ."""
        settings = [set(result.sampling.split(", ")) for result in self.results if result.sampling]
        shared = set.intersection(*settings) if settings else set()
        return ", ".join([name, *(part for part in (sampling or "").split(", ") if part and part not in shared)])

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
        gain = (
            "`gain` is the difference in points from random-real of the same network, IPC and kind of labels, ± its "
            "standard error over networks; it counts beyond two of them. "
        )
        gain *= any(self.gain(result) for result in self.results)
        return (
            f"± is the sample deviation over networks; `between` is over generators. {gain}Train {self.train}; "
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
    return f"{statistics.fmean(values):.3g}" + (f" ± {deviation(values):.2g}" if len(values) > 1 else "")


def _stored(result: Result) -> str:
    """Return the size of a set, and of the parts that it can be made of again."""
    size = f"{result.stored_bytes / 1024:,.0f} KiB"
    if not result.stored_parts:
        return size
    parts = " + ".join(f"{count / 1024:,.0f} KiB {name}" for name, count in sorted(result.stored_parts.items()))
    fresh = result.protocol in PROTOCOLS and PROTOCOLS[result.protocol].fresh
    return parts if fresh else f"{size}, or {parts}"


def _cells(results: list[Result], label: str, gain: Difference | None) -> list[str]:
    """Return a table row: the mean over generators, and deviations of two kinds."""
    first, means = results[0], [result.mean for result in results]
    accuracy = f"{100 * statistics.fmean(means):.1f}"
    if len(first.accuracies) > 1:
        accuracy += f" ± {100 * statistics.fmean(r.std for r in results):.1f}"
    if len(results) > 1:
        accuracy += f" (between {100 * deviation(means):.1f})"
    return [
        label,
        first.protocol,
        "all" if first.ipc is None else str(first.ipc),
        first.network,
        accuracy,
        "-" if gain is None else str(gain),
        str(len(first.accuracies)),
        "-" if first.generator_seed is None else str(len(results)),
        f"{first.distinct_images:,}" if first.distinct_images else "-",
        _stored(first),
        f"{first.steps:,}" if first.steps else "-",
        f"{sum(result.seconds for result in results):.0f}",
    ]
