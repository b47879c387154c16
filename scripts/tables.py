"""Tables and figures of the evidence, from the JSON that `reproduce.py` leaves and from nothing else."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import markdown
from evidence import (
    ABLATIONS,
    BEST_5,
    FIGURE_3,
    IPCS,
    PROTOCOLS,
    REAL,
    SIZES,
    TABLE_1,
    TABLE_2,
    TABLE_2_NETWORKS,
    VARIANTS,
    Piece,
    kept,
    queue,
)
from matplotlib.figure import Figure
from selection import SELECTIONS

from hf_gdd.networks import network_name
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report, Result

TITLES = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "cifar10": "CIFAR-10"}
PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
RESULTS, METHODS = "## Results", "## Methods"


@dataclass(frozen=True)
class Found:
    """What one size has come to.

    Attributes:
        size: its name.
        pieces: of the queue, with what each left; None for what was not run.

    """

    size: str
    pieces: Mapping[Piece, dict[str, Any] | None]

    @property
    def done(self) -> list[dict[str, Any]]:
        """What finished pieces left."""
        return [made for made in self.pieces.values() if made]

    def results(self, data: str, name: str, protocol: str, ipc: int | None, network: str | None = None) -> list[Result]:
        """Rows of one cell, one for each generator."""
        network = network or network_name(SIZES[self.size].network)
        wanted = {"protocol": protocol, "ipc": ipc, "network": network}
        reports = [
            made["report"] for piece, made in self.pieces.items() if made and piece.data == data and "report" in made
        ]
        return [row for report in reports for row in report.find(name, **wanted)]


def load(results: Path, size: str) -> Found:
    """All that there is of a size."""

    def read(piece: Piece) -> dict[str, Any] | None:
        path = results / f"{piece.name}.json"
        if not path.is_file():
            return None
        made = json.loads(path.read_text())
        return made | {"report": Report.from_dict(made["report"])} if "report" in made else made

    return Found(size, {piece: read(piece) for piece in queue(size)})


def cell(rows: Sequence[Result]) -> str:
    """Mean ± deviation over generators (over networks), in percent."""
    if not rows:
        return "not run"
    means = [row.mean for row in rows]
    within = 100 * statistics.fmean(row.std for row in rows)
    between = f" ± {100 * statistics.stdev(means):.1f}" if len(rows) > 1 else ""
    return f"{100 * statistics.fmean(means):.1f}{between} ({within:.1f})"


def table_1(found: Found, data: str, protocol: str) -> str:
    """Methods and baselines on one data set, beside what was published."""
    told, rows = PUBLISHED["table_1"].get(data, {}), []
    baselines = (RANDOM_REAL, *SELECTIONS)
    for name in (*baselines, *TABLE_1):
        ours = [cell(found.results(data, name, "fixed" if name in baselines else protocol, ipc)) for ipc in IPCS]
        theirs = [f"{mean} ± {std}" for mean, std in told.get(name, ())] or ["-"] * len(IPCS)
        rows.append([name, *ours, *theirs])
    mean, std = PUBLISHED["all_data"][data]
    rows.append([FULL_DATA, cell(found.results(data, FULL_DATA, "fixed", None)), "", "", f"{mean} ± {std}", "", ""])
    head = [f"{whose}, IPC {ipc}" for whose in (found.size, "published") for ipc in IPCS]
    return markdown([[f"{TITLES[data]}, `{protocol}`", *head], *rows])


def differences(found: Found, data: str) -> str:
    """What each way of tuning gains over going on without it, from the same GAN: pairs of equal seed."""
    rows = []
    for name, other in (
        ("cgan-continued", "cgan"),
        ("dim", "cgan-continued"),
        ("global-local", "cgan-continued"),
        ("global-local", "dim"),
    ):
        for protocol in PROTOCOLS:
            cells = []
            for ipc in IPCS:
                one, two = (
                    {row.generator_seed: row.mean for row in found.results(data, which, protocol, ipc)}
                    for which in (name, other)
                )
                gains = [100 * (one[seed] - two[seed]) for seed in one if seed in two]
                spread = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
                cells.append(f"{statistics.fmean(gains):+.1f}{spread}" if gains else "not run")
            rows.append([f"{name} - {other}", protocol, *cells])
    head = ["protocol", *(f"{found.size}, IPC {ipc}" for ipc in IPCS)]
    return markdown([[f"{TITLES[data]}, points gained", *head], *rows])


def table_2(found: Found) -> str:
    """Other architectures, and what was published of some ResNet-18 and of the others."""
    rows = [
        [f"{name}, {found.size}"]
        + [cell(found.results("cifar10", name, "dynamic", 10, network)) for network in TABLE_2_NETWORKS]
        for name in TABLE_2
    ]
    told = PUBLISHED["table_2"]
    for name, cells in told["rows"].items():
        theirs = {network: f"{mean} ± {std}" for network, (mean, std) in zip(told["networks"], cells, strict=True)}
        names = ("resnet18" if network.startswith("resnet18") else network for network in TABLE_2_NETWORKS)
        rows.append([f"{name}, published", *(theirs[network] for network in names)])
    return markdown([["CIFAR-10, IPC 10, `dynamic`", *TABLE_2_NETWORKS], *rows])


def choices(found: Found) -> str:
    """What settings change, at one generator seed."""
    rows = [
        [name, str(ipc), *(cell(one(found.results("fashion_mnist", name, protocol, ipc))) for protocol in PROTOCOLS)]
        for names, ipc in ((FIGURE_3, 1), (ABLATIONS, 10))
        for name in ("global-local", *names)
    ]
    rows += [
        [
            f"{name}, 32 px",
            "10",
            *(cell(found.results("fashion_mnist-32", name, protocol, 10)) for protocol in PROTOCOLS),
        ]
        for name in ("cgan", "global-local")
    ]
    return markdown([["Fashion-MNIST", "IPC", *(f"{found.size}, `{protocol}`" for protocol in PROTOCOLS)], *rows])


def one(rows: Sequence[Result]) -> list[Result]:
    """Those of the first generator."""
    return [row for row in rows if not row.generator_seed]


def circumstances(found: Found) -> str:
    """What the numbers of a size depend on."""
    done, size = found.done, SIZES[found.size]
    devices = ", ".join(sorted({made["device"] for made in done}))
    commits = ", ".join(dict.fromkeys(str(made["commit"])[:7] for made in done))
    versions = ", ".join(sorted({f"torch {made['versions']['torch']}" for made in done}))
    trained = sum(made.get("seconds", 0.0) for made in done)
    judged = sum(row.seconds for made in done if "report" in made for row in made["report"].results)
    recipe = ", ".join(
        f"{name} {value}"
        for name, value in next((made["report"].recipe.items() for made in done if "report" in made), ())
        if value not in (False, [], None)
    )
    steps = [str(cap) if cap else "all" for cap in size.steps]
    caveats = "".join(f" {told}" for told in dict.fromkeys(told for made in done for told in made["caveats"]))
    caveats += "".join(
        f" {TITLES[piece.data]}: {told}."
        for piece, made in found.pieces.items()
        if made and piece.kind == REAL
        for told in made["report"].problems
    )
    handed = " Some states travelled with moments in half precision." * any(made.get("handed_over") for made in done)
    shared = ", which see the same draws" * size.shared_draws
    return (
        f"Size `{found.size}`: {steps[0]} steps of the GAN, {steps[1]} of the second stage; judged by {size.n} "
        f"{network_name(size.network)} each{shared} ({recipe}). Mean ± deviation over generators (over networks) in %; "
        f"{devices}; {trained / 60:,.0f} minutes of training, {judged / 60:,.0f} of judging; {versions}; commit "
        f"{commits}.{caveats}{handed}"
    )


def left(found: Found) -> str:
    """What was not run."""
    open_ = [piece.name.split("/", 1)[1] for piece, made in found.pieces.items() if not made]
    return f"Not run ({len(open_)} of {len(found.pieces)} pieces): {', '.join(open_)}." if open_ else "All pieces ran."


def section(found: Found, *, whole: bool) -> str:
    """All tables of a size; unless `whole`, those of data sets for which every method was judged."""
    parts = []
    for data in TITLES:
        judged = [bool(found.results(data, name, PROTOCOLS[-1], IPCS[-1])) for name in TABLE_1]
        if any(judged) if whole else all(judged):
            tested = any(found.results(data, name, *BEST_5, ipc) for name in TABLE_1 for ipc in IPCS)
            shown = (*PROTOCOLS, *(BEST_5 if whole and tested else ()))
            parts += [*(table_1(found, data, protocol) for protocol in shown), differences(found, data)]
    if whole:
        names = {piece.variant for piece, made in found.pieces.items() if made and "report" in made}
        parts += [table_2(found)] * bool(names & {*TABLE_2}) + [choices(found)] * bool(names & {*FIGURE_3, *ABLATIONS})
    return "\n\n".join([*parts, circumstances(found), *([left(found)] if whole else [])]) if found.done else ""


def curve(found: Found, path: Path) -> None:
    """Accuracy against IPC: fresh images, a fixed set, random real ones, all data."""
    shown = [data for data in TITLES if found.results(data, "global-local", "fixed", IPCS[0])]
    figure = Figure(figsize=(4.6 * max(1, len(shown)), 3.6), layout="constrained")
    for axis, data in zip(figure.subplots(1, max(1, len(shown)), squeeze=False)[0], shown, strict=False):
        for label, name, protocol in (
            ("global-local, dynamic", "global-local", "dynamic"),
            ("global-local, fixed", "global-local", "fixed"),
            ("random real", RANDOM_REAL, "fixed"),
        ):
            rows = [found.results(data, name, protocol, ipc) for ipc in IPCS]
            points = [(ipc, each) for ipc, each in zip(IPCS, rows, strict=True) if each]
            means = [100 * statistics.fmean(row.mean for row in each) for _, each in points]
            spread = [
                100 * (statistics.stdev(r.mean for r in each) if len(each) > 1 else each[0].std) for _, each in points
            ]
            axis.errorbar([ipc for ipc, _ in points], means, yerr=spread, marker="o", capsize=3, label=label)
        for row in found.results(data, FULL_DATA, "fixed", None):
            axis.axhline(100 * row.mean, color="grey", linestyle=":", label="all data")
        axis.set(title=f"{TITLES[data]}, {found.size}", xscale="log", xlabel="images per class", ylabel="accuracy, %")
        axis.set_xticks(IPCS, [str(ipc) for ipc in IPCS])
        axis.legend(fontsize="small")
        axis.grid(alpha=0.4)
    figure.savefig(path, dpi=100)


def sweep(found: Found, path: Path) -> None:
    """Figure 3: accuracy at IPC 1 against the local weight."""
    names = sorted(("global-local", *FIGURE_3), key=lambda name: VARIANTS[name].factor)
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for protocol in PROTOCOLS:
        points = [
            (VARIANTS[name].factor, row)
            for name in names
            for row in one(found.results("fashion_mnist", name, protocol, 1))
        ]
        if points:
            factors, rows = zip(*points, strict=True)
            means, spread = [100 * row.mean for row in rows], [100 * row.std for row in rows]
            axis.errorbar(factors, means, yerr=spread, marker="o", capsize=3, label=protocol)
    axis.set(xscale="log", xlabel=f"local weight / {SIZES[found.size].local_weight:g}", ylabel="accuracy, %")
    axis.set_title(f"Fashion-MNIST, IPC 1, {found.size}, one generator")
    axis.legend()
    axis.grid(alpha=0.4)
    figure.savefig(path, dpi=100)


def pictures(found: Found) -> dict[str, Callable[[Found, Path], None]]:
    """The figures that there is something to show in."""
    swept = any(made and piece.variant in FIGURE_3 for piece, made in found.pieces.items())
    drawn = {f"accuracy-{found.size}.png": curve} if found.done else {}
    return drawn | ({f"local-weight-{found.size}.png": sweep} if swept else {})


def write_all(results: Path, root: Path) -> Iterator[Path]:
    """README's section, the page of all results, and the figures."""
    cards, found = root / "model_cards", [load(results, size) for size in SIZES]
    for each in found:
        for name, draw in pictures(each).items():
            draw(each, cards / name)
            yield cards / name
    for path, text in pages(found, root):
        path.write_text(text)
        yield path


def pages(found: Sequence[Found], root: Path) -> Iterator[tuple[Path, str]]:
    """What README and the page of all results are to say; nothing while there is nothing to tell."""
    if any(each.done for each in found):
        yield root / "model_cards" / "README.md", all_results(found, root / "model_cards")
        readme = root / "README.md"
        yield readme, with_results(readme.read_text(), in_readme(found))


COMPARED = """What cannot be compared: the papers count as IPC the images that a generator makes *in every epoch*
(`dynamic`), so that a network sees up to a thousand times as many different ones, and print it beside methods that
store exactly IPC images of a class (`fixed`). They report the best of five tests on the test set itself, of generators
that were chosen by test accuracy as well, and deviations over networks that share one generator. Here a row is tested
once, at its end (but `dynamic-best5-test`, their way), and nothing is chosen by test data. At `lite` generators and
networks are small and learn for minutes: there compare what stands in one column of ours, not ours with theirs."""


def in_readme(found: Sequence[Found]) -> str:
    """README's section, without its heading: what the largest size that was run has come to."""
    largest = next(each for each in found if each.done)
    picture = f"![Accuracy against images per class](model_cards/accuracy-{largest.size}.png)"
    more = (
        "All of it, and what was not run, is in [model_cards](model_cards/README.md); `python scripts/reproduce.py "
        "--next` goes on with it."
    )
    return "\n\n".join([section(largest, whole=False), picture, COMPARED, more])


def all_results(found: Sequence[Found], cards: Path) -> str:
    """The page of all results."""
    parts = ["# Results", "Written by `python scripts/reproduce.py --table` from the JSON in `evidence`.", COMPARED]
    for each in found:
        parts.append(f"## Size `{each.size}`")
        parts.append(section(each, whole=True) or left(each))
        for name, what in (("accuracy", "Accuracy against images per class"), ("local-weight", "Figure 3")):
            if f"{name}-{each.size}.png" in pictures(each):
                parts.append(f"![{what}]({name}-{each.size}.png)")
        parts += [
            f"Samples of [{piece.card}]({piece.card}/README.md), a class a row: ![samples]({piece.card}/grid.png)"
            for piece in kept(each.size)
            if (cards / piece.card).is_dir()
        ]
    return "\n\n".join([*parts, *other_cards(cards)]) + "\n"


def other_cards(cards: Path) -> Iterator[str]:
    """What the cards tell that are not of this queue: the other methods, and the digits."""
    yield "## Other methods and data sets"
    own = {piece.card for size in SIZES for piece in kept(size)}
    for path in sorted(cards.glob("*/report.json")):
        name = path.parent.name
        if name not in own:
            yield f"### [{name}]({name}/README.md)\n\n{Report.load(path).markdown()}"


def with_results(readme: str, results: str) -> str:
    """README with this section of results, which stands before the methods, instead of another or of none."""
    before, after = readme.split(f"{METHODS}\n", 1)
    before = before.split(f"{RESULTS}\n", 1)[0]
    return f"{before}{RESULTS}\n\n{results}\n\n{METHODS}\n{after}"
