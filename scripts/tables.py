"""Tables of the evidence and the pages they stand on, from the JSON that `reproduce.py` leaves and nothing else."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
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
    Size,
    kept,
)
from figures import pictures
from results import TITLES, Found, load, of_first_generator
from selection import SELECTIONS

from hf_gdd import GlobalLocalTrainer
from hf_gdd.classifiers.networks import network_name
from hf_gdd.report import FULL_DATA, RANDOM_REAL, Report, Result

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
RESULTS, METHODS = "## Results", "## Methods"


def cell(generators: Sequence[Sequence[float]], sign: str = "") -> str:
    """Mean ± deviation over generators (over networks), in percent, of a number for each network of each generator."""
    if not generators:
        return "not run"
    means = [statistics.fmean(networks) for networks in generators]
    within = 100 * statistics.fmean(statistics.stdev(networks) for networks in generators)
    between = f" ± {100 * statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"{100 * statistics.fmean(means):{sign}.1f}{between} ({within:.1f})"


def accuracies(rows: Sequence[Result]) -> list[tuple[float, ...]]:
    """Of every network, generator by generator."""
    return [row.accuracies for row in rows]


def table_1(found: Found, data: str, protocol: str) -> str:
    """Methods and baselines on one data set beside what was published, of methods if they make fresh images."""
    told, rows = PUBLISHED["table_1"].get(data, {}), []
    for name in (RANDOM_REAL, *(SELECTIONS if protocol == "fixed" else ()), *TABLE_1):
        real = name not in TABLE_1
        ours = [found.results(data, name, "fixed" if real else protocol, ipc) for ipc in IPCS]
        theirs = told.get(name, ()) if real or protocol != "fixed" else ()  # whose generators make fresh images
        rows.append(
            [
                f"{name}, `fixed`" if real and protocol != "fixed" else name,
                "-" if real else str(max(map(len, ours))),
                *(cell(accuracies(each)) for each in ours),
                *([f"{mean} ({std})" for mean, std in theirs] or ["-"] * len(IPCS)),
            ]
        )
    head = [f"{whose}, IPC {ipc}" for whose in (found.size, "published") for ipc in IPCS]
    return markdown([[f"{TITLES[data]}, `{protocol}`", "generators", *head], *rows])


def all_data(found: Found, data: str) -> str:
    """The ceiling."""
    ours = cell(accuracies(found.results(data, FULL_DATA, "fixed", None)))
    mean, std = PUBLISHED["all_data"][data]
    return f"Networks trained on all of {TITLES[data]}: {ours} here, {mean} ({std}) published."


def verdict(found: Found, data: str) -> str:
    """At which IPC random real images have a higher mean than every generator; nothing if not all were judged."""
    told = []
    for protocol in PROTOCOLS:
        better = []
        for ipc in IPCS:
            real = found.results(data, RANDOM_REAL, "fixed", ipc)
            methods = [found.results(data, name, protocol, ipc) for name in TABLE_1]
            if not real or not all(methods):
                return ""
            if real[0].mean > max(row.mean for rows in methods for row in rows):
                better.append(str(ipc))
        told.append(f"under `{protocol}` at " + (f"IPC {', '.join(better)}" if better else "no IPC"))
    return (
        f"A fixed set of random real images of {TITLES[data]} has a higher mean than every generator here "
        f"{' and '.join(told)}."
    )


def differences(found: Found, data: str) -> str:
    """What each way of tuning gains over going on without it, from the same GAN, in networks of equal seed."""
    rows = []
    for name, other in (
        ("cgan-continued", "cgan"),
        ("dim", "cgan-continued"),
        ("global-local", "cgan-continued"),
        ("global-local", "dim"),
    ):
        for protocol in PROTOCOLS:
            gains = [paired(*(found.results(data, each, protocol, ipc) for each in (name, other))) for ipc in IPCS]
            rows.append(
                [f"{name} - {other}", protocol, str(max(map(len, gains))), *(cell(each, "+") for each in gains)]
            )
    head = ["protocol", "generators", *(f"{found.size}, IPC {ipc}" for ipc in IPCS)]
    return markdown([[f"{TITLES[data]}, points gained", *head], *rows])


def paired(ours: Sequence[Result], theirs: Sequence[Result]) -> list[list[float]]:
    """Gains of networks of equal seed on generators of equal seed."""
    other = {row.generator_seed: row.accuracies for row in theirs}
    return [
        [one - two for one, two in zip(row.accuracies, other[row.generator_seed], strict=True)]
        for row in ours
        if row.generator_seed in other
    ]


def table_2(found: Found) -> str:
    """Other architectures, and what was published of some ResNet-18 and of the others."""
    rows = [
        [f"{name}, {found.size}"]
        + [cell(accuracies(found.results("cifar10", name, "dynamic", 10, network))) for network in TABLE_2_NETWORKS]
        for name in TABLE_2
    ]
    told = PUBLISHED["table_2"]
    for name, cells in told["rows"].items():
        theirs = {network: f"{mean} ({std})" for network, (mean, std) in zip(told["networks"], cells, strict=True)}
        names = ("resnet18" if network.startswith("resnet18") else network for network in TABLE_2_NETWORKS)
        rows.append([f"{name}, published", *(theirs[network] for network in names)])
    return markdown([["CIFAR-10, IPC 10, `dynamic`", *TABLE_2_NETWORKS], *rows])


def choices(found: Found) -> str:
    """What settings change, at one generator seed."""

    def cells(data: str, name: str, ipc: int) -> list[str]:
        rows = [of_first_generator(found.results(data, name, protocol, ipc)) for protocol in PROTOCOLS]
        return [str(ipc), *(cell(accuracies(each)) for each in rows)]

    rows = [
        [name, *cells("fashion_mnist", name, ipc)]
        for names, ipc in ((FIGURE_3, 1), (ABLATIONS, 10))
        for name in ("global-local", *names)
    ]
    rows += [[f"{name}, 32 px", *cells("fashion_mnist-32", name, 10)] for name in ("cgan", "global-local")]
    return markdown([["Fashion-MNIST", "IPC", *(f"{found.size}, `{protocol}`" for protocol in PROTOCOLS)], *rows])


def lengths(size: Size) -> str:
    """How long generators are trained, and in how many networks they match."""
    (first, second), refresh = size.steps, GlobalLocalTrainer.configure(**size.training).pool_refresh
    if not (first and second and refresh):
        return "GAN and tuning at the preset's full length, matching in a fresh network of the pool every epoch"
    drawn = math.ceil(second / refresh)
    pool = "one network drawn from the pool" if drawn == 1 else f"{drawn} networks drawn from the pool one by one"
    return f"{first:,} steps of the GAN, then {second:,} of tuning; dim and global-local match in {pool}"


def protocol_of(found: Found) -> str:
    """What a cell is: of what, by what, over what."""
    size = SIZES[found.size]
    identity = GlobalLocalTrainer.configure(**size.training).identity()
    settings = ", ".join(f"{name} {value}" for name, value in size.training.items() if name in identity)
    recipe = ", ".join(
        f"{name} {value}"
        for name, value in asdict(size.recipe).items()
        if name != "floor" and value not in (False, (), None)
    )
    judge = network_name(size.network)
    if callable(size.network):
        judge += f" of `scripts/{size.network.__module__}.py`"
    shared = " that see the same batches (of random-real, each its own subset)" * size.shared_draws
    return (
        f"By `scripts/reproduce.py --size {found.size}`: {settings}; {lengths(size)}. A cell is test accuracy in %: "
        f"the mean over {size.n} networks{shared} and, in parentheses, their standard deviation ({judge}; {recipe}). "
        "With several generators it is the mean over them ± the deviation between them (the mean deviation of their "
        "networks). A gain is the mean difference between networks of equal seed; from one generator it does not tell "
        "how another seed of the training would differ, so take a point for noise."
    )


def circumstances(found: Found) -> str:
    """What the numbers of a size depend on."""
    done = found.done
    calls = [call for made in done for call in (*made.get("earlier_calls", ()), made)]
    devices = ", ".join(sorted({call["device"] for call in calls}))
    commits = ", ".join(dict.fromkeys(short(call["commit"]) for call in calls))
    versions = ", ".join(sorted({f"torch {call['versions']['torch']}" for call in calls}))
    trained = sum(made.get("seconds", 0.0) for made in done)
    judged = sum(row.seconds for made in done if "report" in made for row in made["report"].results)
    caveats = [told for made in done for told in made["caveats"]]
    caveats += [
        f"{TITLES[piece.data]}: {told}."
        for piece, made in found.pieces.items()
        if made and piece.kind == REAL
        for told in made["report"].problems
    ]
    if any(made.get("handed_over") or made.get("start_handed_over") for made in done):
        caveats.append("Some states traveled with moments in half precision.")
    made_on = (
        f"{devices}; {trained / 60:,.0f} minutes of training, {judged / 60:,.0f} of judging; {versions}; commit "
        f"{commits}."
    )
    selected = "herding and k-center choose real images by the features of a network trained on all of them."
    return "\n\n".join(
        [
            protocol_of(found),
            f"random-real draws real images; {selected} Published: {PUBLISHED['source']}.",
            " ".join([made_on, *dict.fromkeys(caveats)]),
        ]
    )


def short(commit: str | None) -> str:
    """A commit as people write it, still marked if files had been changed."""
    name, dash, changed = (commit or "unknown").partition("-")
    return f"{name[:7]}{dash}{changed}"


def not_run(found: Found) -> str:
    """The pieces that are still to do, folded away."""
    names: dict[str, list[str]] = {}
    for piece, made in found.pieces.items():
        if not made:
            names.setdefault(piece.data, []).append(piece.name.split("/")[-1])
    if not names:
        return "All pieces were run."
    number, lines = (
        sum(map(len, names.values())),
        "\n".join(f"- {data}: {', '.join(each)}" for data, each in names.items()),
    )
    return folded(f"Not run: {number} of {len(found.pieces)} pieces", lines)


def folded(title: str, text: str) -> str:
    """Text that a click opens."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def section(found: Found, *, whole: bool) -> str:
    """All tables of a size; unless `whole`, those of data sets for which every method was judged."""
    parts = []
    for data in TITLES:
        judged = [bool(found.results(data, name, PROTOCOLS[-1], IPCS[-1])) for name in TABLE_1]
        begun = any(made and piece.data == data and "report" in made for piece, made in found.pieces.items())
        if begun if whole else all(judged):
            tested = any(found.results(data, name, *BEST_5, ipc) for name in TABLE_1 for ipc in IPCS)
            shown = (*PROTOCOLS, *(BEST_5 if whole and tested else ()))
            parts += [table_1(found, data, protocol) for protocol in shown]
            parts.append(" ".join(filter(None, (verdict(found, data), all_data(found, data)))))
            parts += [differences(found, data)] * any(judged)
    if whole:
        names = {piece.variant for piece, made in found.pieces.items() if made and "report" in made}
        parts += [table_2(found)] * bool(names & {*TABLE_2}) + [choices(found)] * bool(names & {*FIGURE_3, *ABLATIONS})
    told = [circumstances(found), *([not_run(found)] if whole else [])]
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
    if told := in_readme(found, root / "model_cards"):
        readme = root / "README.md"
        yield readme, with_results(readme.read_text(), told)


BARS = "Error bars: the deviation between generators, or between networks where there is one generator."
COMPARED = (
    "`fixed` trains networks on one set of IPC images per class, `dynamic` on as many fresh ones every epoch. README "
    "explains [the methods](../README.md#methods) and [what can be compared with the papers]"
    "(../README.md#what-can-be-compared-with-the-papers)."
)


def in_readme(found: Sequence[Found], cards: Path) -> str:
    """README's section, without its heading: what the largest size with a whole table has come to, if one has."""
    for each in found:
        if told := section(each, whole=False):
            picture = f"![Accuracy against images per class](model_cards/accuracy-{each.size}.png)"
            more = (
                "Compare the methods of one table with each other; [why not with the published numbers]"
                "(#what-can-be-compared-with-the-papers). All results, and what has not been run, are in "
                f"[model_cards](model_cards/README.md); `python scripts/reproduce.py --size {each.size} --next` goes "
                "on with them."
            )
            return "\n\n".join(filter(None, (told, picture, BARS, kept_here(each.size, cards), more)))
    return ""


def kept_here(size: str, cards: Path) -> str:
    """Where generators of the tables lie, and how one is used."""
    here = [piece.card for piece in kept(size) if (cards / piece.card).is_dir()]
    if not here:
        return ""
    links = " and ".join(f"[{card}](model_cards/{card}/README.md)" for card in here)
    return (
        f"The global-local generators of these tables come with the repository: {links}. In a clone, "
        f'`hf_gdd.load_distilled_dataset("model_cards/{here[0]}", ipc=10)` makes 10 images of every class.'
    )


def all_results(found: Sequence[Found], cards: Path) -> str:
    """The page of all results."""
    written = "Written by `python scripts/reproduce.py --table` from the JSON in `evidence` and of the other cards."
    parts = ["# Results", written, COMPARED]
    for each in sorted(found, key=lambda each: not each.done):  # what was run comes first
        parts.append(f"## Size `{each.size}`")
        parts.append(section(each, whole=True) or not_run(each))
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
            yield f"[{name}]({name}/README.md)\n\n{folded('Table', Report.load(path).markdown())}"


def with_results(readme: str, results: str) -> str:
    """README with this section of results, which stands before the methods, instead of another or of none."""
    before, after = readme.split(f"{METHODS}\n", 1)
    before = before.split(f"{RESULTS}\n", 1)[0]
    return f"{before}{RESULTS}\n\n{results}\n\n{METHODS}\n{after}"
