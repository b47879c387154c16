"""Write docs/benchmark.md from the JSON of stored measurements; the text below is that of the page.

This page is written by `python scripts/benchmark/page.py` from the JSON files beside that script, which
`python scripts/benchmark/benchmark.py` measures.

The reference (`plain_reference.py`) does what the papers' public code does: a `DataLoader` over PIL images with the
number of workers that is fastest, float32 and NCHW, gradients of everything, one network at a time, losses read in
every step. The library's side is what `fit`, `evaluate` and `load_distilled_dataset` run. Both do the same work on as
many threads, by turns, each in a process of its own. `plain / ours` is the median over turns, with the smallest and the
largest ratio in brackets; other runs have other medians.

The images are the bundled digits, enlarged and repeated: the cost of a step depends on their shape alone. A TFLOP is
one of convolutions and matrix products, in one call. `predicted` is what the reference should need by the textbook:
three forward passes for each network that is trained, six for the gradient penalty. In `materialize` and `stream` the
reference is the bare forward pass, in a process that returns freed memory to the system, so ours can be faster. In the
second table one quantity doubles at a time, and every point has a process of its own.

Each table names the commit it was measured at. `channels last` and `weight gradients as matrix products` are choices
that an earlier version made by timing: the first is now the setting `channels_last`, the second is gone.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from hf_gdd.report import markdown_table

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmark.md"
STORED = ("benchmark", "growth")  # JSON files beside this script
PRECISIONS = {"no": "fp32", "bf16": "bf16"}


def tables(record: dict[str, Any]) -> str:
    """Return the tables of one measurement, and its circumstances."""
    parts = [paths_table(record)] * bool(record["paths"]) + [growth_table(record)] * bool(record["growth"])
    settings, versions = record["settings"], record["versions"]
    name, dash, changed = (record["commit"] or "").partition("-")
    at = f" at commit {name[:7]}{dash}{changed}" if name else ""
    facts = f"{record['device']}, {settings['threads']} threads; size {settings['size']}; {settings['repeats']} repeats"
    facts += f"; torch {versions['torch']}, hf_gdd {versions['hf_gdd']}. Measured by `{record['command']}`{at}."
    return "\n\n".join([*parts, facts])


def paths_table(record: dict[str, Any]) -> str:
    """Return a row for every path, variant and precision."""
    header = "path | settings | images | plain s | ours s | plain / ours | plain img/s | ours img/s | plain TFLOP"
    header, rows = f"{header} | predicted | ours TFLOP | ours GFLOP/s | workers".split(" | "), []
    for row in record["paths"]:
        ours, plain = statistics.median(row["seconds"]), statistics.median(row["reference_seconds"])
        ratios = [a / b for a, b in zip(row["reference_seconds"], row["seconds"], strict=True)]
        chosen = row.get("arithmetic", {})  # of earlier versions, which chose them by timing
        labels = [f"{row['variant']} {PRECISIONS[row['precision']]}".strip()]
        labels += ["channels last"] * bool(chosen.get("channels_last"))
        labels += ["weight gradients as matrix products"] * bool(chosen.get("products"))
        cells = [row["path"], ", ".join(labels), f"{row['images']:,}", f"{plain:.3g}", f"{ours:.3g}"]
        cells += [f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
        cells += [f"{row['images'] / x:,.0f}" for x in (plain, ours)]
        cells += [f"{row[name] / 1e12:.3g}" for name in ("reference_flops", "predicted_flops", "flops")]
        cells += [f"{row['flops'] / ours / 1e9:,.0f}", "-" if row["workers"] is None else str(row["workers"])]
        rows.append(cells)
    return markdown_table(header, rows)


def growth_table(record: dict[str, Any]) -> str:
    """Return a row for every quantity that grew."""
    header = ["path", "grown", "seconds", "time", "predicted", "peak memory, MiB", "grows by", "of which stays"]
    rows = []
    for row in record["growth"]:
        base, grown = row["base"], row["grown"]
        times = [min(each["seconds"]) for each in (base, grown)]  # other load only adds time
        peaks, rests = ([each[name] / 2**20 for each in (base, grown)] for name in ("peak_bytes", "rest_bytes"))
        cells = [row["path"], f"{row['what']} x{row['factor']}", f"{times[0]:.3g} → {times[1]:.3g}"]
        cells += [f"x{times[1] / times[0]:.2f}", f"x{grown['predicted_flops'] / base['predicted_flops']:.2f}"]
        cells += [f"{peaks[0]:,.0f} → {peaks[1]:,.0f}", f"{peaks[1] - peaks[0]:+,.0f}", f"{rests[1] - rests[0]:+,.0f}"]
        rows.append(cells)
    return markdown_table(header, rows)


def page() -> str:
    """Return the page of the stored measurements, under the description of this script."""
    _, description = __doc__.split("\n\n", 1)
    stored = [tables(json.loads((HERE / f"{name}.json").read_text())) for name in STORED]
    return "\n\n".join(["# Benchmark", description.strip(), *stored]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
