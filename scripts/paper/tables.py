"""Write docs/results.md and its figures from JSON.

The JSON is that of finished experiments, and the reports in model_cards.

    python scripts/paper/tables.py

The text of the page is in results.md.jinja.
"""

import json
import math
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from experiments import IPCS, PROTOCOLS, REAL, SIZES, TABLE_1, TABLE_2, TITLES, WITHOUT_CODES
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from results import RESULTS, Results, load

from hf_gdd import GlobalLocalTrainer
from hf_gdd.classifiers.coresets import CORESETS
from hf_gdd.report import DYNAMIC, DYNAMIC_BEST5, FIXED, FULL_DATA, RANDOM_REAL, Report, Result, markdown_table
from hf_gdd.report import PROTOCOLS as PROTOCOL_TEXTS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PUBLISHED = json.loads((HERE / "published.json").read_text())
NOT_RUN = "not run"
GAINS = ("cgan-continued - cgan", "dim - cgan-continued", "global-local - cgan-continued", "global-local - dim")


def cell(generators: Sequence[Sequence[float]], sign: str = "") -> str:
    """Format accuracies in %: mean ± deviation of generators (of networks)."""
    if not generators:
        return NOT_RUN
    means = [statistics.fmean(networks) for networks in generators]
    within = 100 * statistics.fmean(statistics.stdev(networks) for networks in generators)
    between = f" ± {100 * statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"{100 * statistics.fmean(means):{sign}.1f}{between} ({within:.1f})"


def table_1(results: Results, data: str, protocol: str) -> str:
    """Return methods and baselines on one data set, beside published numbers."""
    published, rows = PUBLISHED["table_1"].get(data, {}), []
    for name in (RANDOM_REAL, *(CORESETS if protocol == FIXED else ()), *TABLE_1):
        real = name not in TABLE_1
        ours = [results.rows(data, name, FIXED if real else protocol, ipc) for ipc in IPCS]
        theirs = published.get(name, ()) if real or protocol != FIXED else ()  # whose generators make fresh images
        label = f"{name}, `{FIXED}`" if real and protocol != FIXED else name
        numbers = [cell([row.accuracies for row in each]) for each in ours]
        numbers += [f"{mean} ({std})" for mean, std in theirs] or ["-"] * len(IPCS)
        rows.append([label, "-" if real else str(max(map(len, ours))), *numbers])
    header = [f"{source}, IPC {ipc}" for source in (results.size, "published") for ipc in IPCS]
    return markdown_table([f"{TITLES[data]}, `{protocol}`", "generators", *header], rows)


def gains(results: Results, data: str) -> str:
    """Return mean differences of methods that started from the same GAN.

    They are taken in networks of equal seed.
    """
    rows = []
    for pair, protocol in product(GAINS, PROTOCOLS):
        each = [paired(*(results.rows(data, name, protocol, ipc) for name in pair.split(" - "))) for ipc in IPCS]
        rows.append([pair, protocol, str(max(map(len, each))), *(cell(values, "+") for values in each)])
    header = [f"{TITLES[data]}, points gained", "protocol", "generators"]
    return markdown_table([*header, *(f"{results.size}, IPC {ipc}" for ipc in IPCS)], rows)


def paired(ours: Sequence[Result], theirs: Sequence[Result]) -> list[list[float]]:
    """Return the gains of networks of equal seed on generators of equal seed."""
    pairs = [(row, other) for row, other in product(ours, theirs) if row.generator_seed == other.generator_seed]
    return [[a - b for a, b in zip(row.accuracies, other.accuracies, strict=True)] for row, other in pairs]


def real_wins(results: Results, data: str) -> dict[str, list[int]]:
    """Return the IPCs at which random real images beat every generator.

    That is by the mean; {} if some were not run.
    """
    wins = {protocol: [] for protocol in PROTOCOLS}
    for protocol, ipc in product(PROTOCOLS, IPCS):
        real = results.rows(data, RANDOM_REAL, FIXED, ipc)
        methods = [results.rows(data, name, protocol, ipc) for name in TABLE_1]
        if not real or not all(methods):
            return {}
        if real[0].mean > max(row.mean for rows in methods for row in rows):
            wins[protocol].append(ipc)
    return wins


def other_variants(results: Results) -> str:
    """Return Table 2, Figure 3 and the ablations, as far as they were run.

    What was published of Table 2 stands beside it.
    """
    published, rows = PUBLISHED["table_2"], []
    for experiment, record in results.finished.items():
        if experiment.kind != "judge" or (experiment.variant in TABLE_1 and experiment.data in TITLES):
            continue
        theirs = published["rows"][experiment.variant.split(",")[0]] if experiment.variant in TABLE_2 else []
        cells = {name: f"{mean} ({std})" for name, (mean, std) in zip(published["networks"], theirs, strict=False)}
        for row in record["report"].results:
            numbers = [cell([row.accuracies]), cells.get(row.network.split("-")[0], "-")]
            rows.append([experiment.data, row.name, row.protocol, str(row.ipc), row.network, *numbers])
    header = ["data", "variant", "protocol", "IPC", "network", results.size, "published"]
    return markdown_table(header, rows) if rows else ""


def circumstances(results: Results) -> dict[str, Any]:
    """Return how a size was measured: settings, devices, code, minutes, remarks."""
    size, records = SIZES[results.size], list(results.finished.values())
    config = GlobalLocalTrainer.configure(**size.training)
    settings = {
        name: value for name, value in size.training.items() if name in config.identity().keys() - WITHOUT_CODES
    }
    recipe = {k: v for k, v in size.recipe.identity().items() if k != "floor" and v not in (False, (), None)}
    reports = {e.data: record["report"] for e, record in results.finished.items() if e.kind == REAL}
    notes = [note for record in records for note in record["caveats"]]
    notes += [f"{TITLES[data]}: {problem}." for data, report in reports.items() for problem in report.problems]
    rows = [row for record in records if "report" in record for row in record["report"].results]
    return {
        "settings": settings,
        "networks_drawn": math.ceil(size.steps[1] / config.pool_refresh) if size.steps[1] else None,
        "recipe": recipe,
        "commits": ", ".join(dict.fromkeys(short(record["commit"]) for record in records)),
        "training_minutes": sum(record.get("seconds", 0.0) for record in records) / 60,
        "evaluation_minutes": sum(row.seconds for row in rows) / 60,
        "notes": dict.fromkeys(notes),
    }


def short(commit: str | None) -> str:
    """Shorten a commit, still marked if files had been changed."""
    name, dash, changed = (commit or "unknown").partition("-")
    return f"{name[:7]}{dash}{changed}"


def not_run(results: Results) -> dict[str, dict[str, list[int]]]:
    """Return what is not finished, by data set.

    That is baselines, and variants with the seeds of their generators.
    """
    names: dict[str, dict[str, list[int]]] = {}
    for experiment, record in results.records.items():
        if record is None:
            seeds = names.setdefault(experiment.data, {}).setdefault(experiment.variant or experiment.kind, [])
            if experiment.variant and experiment.seed not in seeds:
                seeds.append(experiment.seed)
    return names


def accuracy_figure(results: Results, path: Path) -> None:
    """Plot accuracy against IPC.

    The curves are fresh images, a fixed set, random real images, and full data.
    """
    shown = [data for data in TITLES if results.has(data, "judge")]
    figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    for axis, data in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for name, protocol in (("global-local", DYNAMIC), ("global-local", FIXED), (RANDOM_REAL, FIXED)):
            cells = {ipc: rows for ipc in IPCS if (rows := results.rows(data, name, protocol, ipc))}
            means = [100 * statistics.fmean(row.mean for row in rows) for rows in cells.values()]
            spread = [
                100 * (statistics.stdev(r.mean for r in rows) if len(rows) > 1 else rows[0].std)
                for rows in cells.values()
            ]
            axis.errorbar(list(cells), means, yerr=spread, marker="o", capsize=3, label=f"{name}, {protocol}")
        for row in results.rows(data, FULL_DATA, FIXED, None):
            axis.axhline(100 * row.mean, color="gray", linestyle=":", label=FULL_DATA)
        axis.set(title=f"{TITLES[data]}, {results.size}", xscale="log", xlabel="images per class", ylabel="accuracy, %")
        axis.set_xticks(IPCS, [str(ipc) for ipc in IPCS])
        axis.legend(fontsize="small")
        axis.grid(alpha=0.4)
    figure.savefig(path, dpi=100)


def page(results: Sequence[Results], cards: Path) -> str:
    """Return the results page."""
    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    template = Environment(loader=FileSystemLoader(HERE), **options).get_template("results.md.jinja")
    own = {experiment.card for each in results for experiment in each.records if experiment.variant}
    reports = {path.parent.name: Report.load(path) for path in sorted(cards.glob("*/report.json"))}
    attempts = {path.parent.name: json.loads(path.read_text()) for path in cards.glob("*/attempts.json")}
    return template.render(
        {call.__name__: call for call in (cell, table_1, gains, real_wins, other_variants, circumstances, not_run)},
        results=results,
        sizes=SIZES,
        titles=TITLES,
        published=PUBLISHED,
        protocols=[PROTOCOL_TEXTS[name] for name in (*PROTOCOLS, DYNAMIC_BEST5)],
        generators={name: report.markdown() for name, report in reports.items() if name not in own},
        attempts=dict.fromkeys(reports) | attempts,
    )


def main() -> None:
    """Write the page and its figures."""
    results = [load(RESULTS, size) for size in SIZES]
    for each in results:
        if each.has(kind="judge"):
            accuracy_figure(each, ROOT / "docs" / "images" / f"accuracy-{each.size}.png")
    (ROOT / "docs" / "results.md").write_text(page(results, ROOT / "model_cards"))


if __name__ == "__main__":
    main()
