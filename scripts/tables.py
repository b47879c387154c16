"""Tables of the evidence and the pages they stand on, from the JSON that `reproduce.py` leaves and nothing else."""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    kept,
)
from figures import pictures
from results import TITLES, Found, load, one
from selection import SELECTIONS

from hf_gdd.networks import network_name
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report, Result

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
RESULTS, METHODS = "## Results", "## Methods"


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


def circumstances(found: Found) -> str:
    """What the numbers of a size depend on."""
    done, size = found.done, SIZES[found.size]
    calls = [call for made in done for call in (*made.get("earlier_calls", ()), made)]
    devices = ", ".join(sorted({call["device"] for call in calls}))
    commits = ", ".join(dict.fromkeys(short(call["commit"]) for call in calls))
    versions = ", ".join(sorted({f"torch {call['versions']['torch']}" for call in calls}))
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
    travelled = any(made.get("handed_over") or made.get("start_handed_over") for made in done)
    handed = " Some states travelled with moments in half precision." * travelled
    shared = ", which see the same draws" * size.shared_draws
    return (
        f"Size `{found.size}`: {steps[0]} steps of the GAN, {steps[1]} of the second stage; judged by {size.n} "
        f"{network_name(size.network)} each{shared} ({recipe}). Mean ± deviation over generators (over networks) in %; "
        f"{devices}; {trained / 60:,.0f} minutes of training, {judged / 60:,.0f} of judging; {versions}; commit "
        f"{commits}.{caveats}{handed}"
    )


def short(commit: str | None) -> str:
    """A commit as people write it, still marked if files had been changed."""
    name, dash, changed = (commit or "unknown").partition("-")
    return f"{name[:7]}{dash}{changed}"


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
    told = [circumstances(found), *([left(found)] if whole else [])]
    return "\n\n".join([*parts, *told]) if parts or (whole and found.done) else ""


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
    """What the page of all results and README are to say; nothing while there is nothing to tell."""
    if any(each.done for each in found):
        yield root / "model_cards" / "README.md", all_results(found, root / "model_cards")
    if told := in_readme(found):
        readme = root / "README.md"
        yield readme, with_results(readme.read_text(), told)


BARS = "Bars: deviation over generators if there are several, otherwise over networks."
COMPARED = """What cannot be compared: the papers count as IPC the images that a generator makes *in every epoch*
(`dynamic`), so that a network sees up to a thousand times as many different ones, and print it beside methods that
store exactly IPC images of a class (`fixed`). They report the best of five tests on the test set itself, of generators
that were chosen by test accuracy as well, and deviations over networks that share one generator. Here a row is tested
once, at its end (but `dynamic-best5-test`, their way), and nothing is chosen by test data. At `lite` generators and
networks are small and learn for minutes: there compare what stands in one column of ours, not ours with theirs."""


def in_readme(found: Sequence[Found]) -> str:
    """README's section, without its heading: what the largest size with a whole table has come to, if one has."""
    for each in found:
        if told := section(each, whole=False):
            picture = f"![Accuracy against images per class](model_cards/accuracy-{each.size}.png)"
            more = (
                "What cannot be compared, and why, stands [below](#what-can-be-compared-with-the-papers). All of it, "
                "and what was not run, is in [model_cards](model_cards/README.md); `python scripts/reproduce.py "
                "--next` goes on with it."
            )
            return "\n\n".join([told, picture, BARS, more])
    return ""


def all_results(found: Sequence[Found], cards: Path) -> str:
    """The page of all results."""
    parts = ["# Results", "Written by `python scripts/reproduce.py --table` from the JSON in `evidence`.", COMPARED]
    for each in sorted(found, key=lambda each: not each.done):  # what was run comes first
        parts.append(f"## Size `{each.size}`")
        parts.append(section(each, whole=True) or left(each))
        drawn = pictures(each)
        for name, what in (("accuracy", "Accuracy against images per class"), ("local-weight", "Figure 3")):
            if f"{name}-{each.size}.png" in drawn:
                parts.append(f"![{what}]({name}-{each.size}.png)")
        parts += [BARS] * bool(drawn)
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
