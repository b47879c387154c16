"""Figures of the evidence."""

import statistics
from collections.abc import Callable
from pathlib import Path

from evidence import FIGURE_3, IPCS, PROTOCOLS, VARIANTS
from matplotlib.figure import Figure
from results import TITLES, Found, of_first_generator

from hf_gdd.report import FULL_DATA, RANDOM_REAL


def curve(found: Found, path: Path) -> None:
    """Accuracy against IPC: fresh images, a fixed set, random real ones, all data."""
    shown = judged(found)
    figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    for axis, data in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
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
            axis.axhline(100 * row.mean, color="gray", linestyle=":", label="all data")
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
            for row in of_first_generator(found.results("fashion_mnist", name, protocol, 1))
        ]
        if points:
            factors, rows = zip(*points, strict=True)
            means, spread = [100 * row.mean for row in rows], [100 * row.std for row in rows]
            axis.errorbar(factors, means, yerr=spread, marker="o", capsize=3, label=protocol)
    axis.set(xscale="log", xlabel="local weight / that of the preset", ylabel="accuracy, %")
    axis.set_title(f"Fashion-MNIST, IPC 1, {found.size}, one generator")
    axis.legend()
    axis.grid(alpha=0.4)
    figure.savefig(path, dpi=100)


def judged(found: Found) -> list[str]:
    """The data sets that there is a curve of."""
    return [data for data in TITLES if found.results(data, "global-local", "fixed", IPCS[0])]


def pictures(found: Found) -> dict[str, Callable[[Found, Path], None]]:
    """The figures that there is something to show in."""
    swept = any(made and piece.variant in FIGURE_3 for piece, made in found.pieces.items())
    drawn = {f"accuracy-{found.size}.png": curve} if judged(found) else {}
    return drawn | ({f"local-weight-{found.size}.png": sweep} if swept else {})
