"""Measure what distilled codes are worth, with settings chosen on held-out images.

    python scripts/paper/codes.py settings    # one change of a setting at a time, on held-out training images
    python scripts/paper/codes.py digits      # the digits, on the test set, with the settings of preset `tiny`

Each line of results goes to a JSON file in `scripts/paper/results/codes` as soon as it is measured. What is there is
skipped, so repeat the command to resume.
"""

import json
import time
from pathlib import Path
from typing import Any, Literal

import tyro
from run import environment
from tyro.conf import Positional

from hf_gdd import AutoGenerator, GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate
from hf_gdd.utils.io import write_json

RESULTS = Path(__file__).parent / "results" / "codes"
IPCS = (1, 10, 50)
HELD_OUT = 0.2  # share of the training images that settings are judged by
BASE = {"codes_ipc": 10, "codes_steps": 300}
# One change of BASE at a time.
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "distance of means": {"codes_distance": "mean"},
    "power 0.5": {"codes_power": 0.5},
    "power 1": {"codes_power": 1.0},
    "power 2": {"codes_power": 2.0},
    "100 steps": {"codes_steps": 100},
    "1000 steps": {"codes_steps": 1000},
    "rate 0.03": {"codes_lr": 0.03},
    "rate 0.3": {"codes_lr": 0.3},
    "networks of age 1 to 60": {"codes_inner_steps": 1, "codes_refresh": 60},
    "networks of age 100": {"codes_inner_steps": 100},
    "three architectures": {"codes_pool": ("convnet2", "convnet3", "resnet10-dd")},
    "augmentation": {"codes_augment": "color_crop_cutout"},
    "class term 0.1": {"codes_class_weight": 0.1},
    "class term 1": {"codes_class_weight": 1.0},
    "logits alone": {"codes_local_weight": 0.0},
    "features alone": {"codes_global_weight": 0.0},
    "16 real images": {"codes_real": 16},
    "256 real images": {"codes_real": 256},
    "10 steps a network": {"codes_refresh": 10},
    "list of 50": {"codes_ipc": 50},
    "list of 50, power 1": {"codes_ipc": 50, "codes_power": 1.0},
    "list of 50, power 2": {"codes_ipc": 50, "codes_power": 2.0},
    "list of 50, distance of means, power 0.5": {"codes_ipc": 50, "codes_distance": "mean", "codes_power": 0.5},
}


def rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows measured so far."""
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def add(path: Path, row: dict[str, Any], **protocol: Any) -> None:
    """Append a row to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, environment() | protocol | {"rows": [*rows(path), row]}, indent=1)


def accuracies(report: Report) -> dict[str, list[float]]:
    """Return the accuracies of each row, by network and IPC."""
    return {f"{r.network} IPC {r.ipc}": [round(a, 4) for a in r.accuracies] for r in report.results}


def train(real: ImageTensors, seed: int, folder: Path) -> str:
    """Train the generator of preset `tiny` without codes, and return its folder."""
    GlobalLocalTrainer(real, preset="tiny", codes_ipc=0, seed=seed, output_dir=folder).fit()
    return str(folder / "generator")


def settings(seeds: tuple[int, ...], n: int, runs: Path) -> None:
    """Judge every change of a setting on held-out training images of the digits."""
    real, held_out = ImageTensors.from_dataset("digits", "train").split(HELD_OUT, seed=0)
    path = RESULTS / f"settings{'' if len(seeds) > 1 else seeds[0]}.json"
    protocol = {"train": real.source, "judged on": held_out.source, "recipe": "tiny", "n": n, "base": BASE}
    options = {"recipe": "tiny", "n": n, "progress": False}
    for seed in seeds:
        generator = train(real, seed, runs / f"held-out-seed{seed}")
        for name, changes in {"random-real": None, "plain draws": None, **CHANGES}.items():
            if any((row["setting"], row["seed"]) == (name, seed) for row in rows(path)):
                continue
            started, row = time.perf_counter(), {"setting": name, "seed": seed, "changes": changes}
            if name == "random-real":
                parts = [
                    baselines(real, held_out, ipc=ipcs, networks=networks, seed=100 * seed, full_data=False, **options)
                    for networks, ipcs in JUDGES
                ]
            else:
                if changes is None:
                    candidate = AutoGenerator.from_pretrained(generator)
                else:
                    folder = runs / f"settings-seed{seed}" / name.replace(" ", "-")
                    trainer = GlobalLocalTrainer(
                        real, preset="tiny", seed=seed, generator=generator, output_dir=folder, **BASE | changes
                    )
                    candidate = trainer.fit()
                    row["train seconds"] = round(trainer.state.seconds, 1)
                parts = [
                    evaluate(
                        candidate,
                        held_out,
                        real=real,
                        ipc=ipcs,
                        protocol="fixed",
                        networks=networks,
                        with_baselines=False,
                        **options,
                    )
                    for networks, ipcs in JUDGES
                ]
            for part in parts:
                row |= accuracies(part)
            add(path, row | {"seconds": round(time.perf_counter() - started, 1)}, **protocol)
            print(row, flush=True)


JUDGES = (("convnet2", IPCS), ("resnet10-dd", (10,)))  # the second is not matched in


def main(
    part: Positional[Literal["settings", "digits"]],
    seeds: tuple[int, ...] = (0, 1),
    n: int = 5,
    runs: Path = Path("runs/codes"),
) -> None:
    """Run a part of the measurements.

    Args:
        part: what to measure.
        seeds: seeds of the generators.
        n: networks of a row.
        runs: folder of trainings.

    """
    settings(seeds, n, runs)


if __name__ == "__main__":
    tyro.cli(main)
