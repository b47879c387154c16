"""Figures of the results page."""

import statistics
from pathlib import Path

from experiments import IPCS, TITLES
from matplotlib.figure import Figure
from results import Results

from hf_gdd.report import DYNAMIC, FIXED, FULL_DATA, RANDOM_REAL


def accuracy_figure(results: Results, path: Path) -> None:
    """Plot accuracy against IPC: fresh images, a fixed set, random real images, full data."""
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
