"""Measure what distilled codes are worth, with settings chosen on held-out images.

    python scripts/paper/codes.py settings    # one change of a setting at a time, on held-out training images
    python scripts/paper/codes.py digits      # the digits, on the test set, with the settings of preset `tiny`
    python scripts/paper/codes.py images      # Fashion-MNIST and MNIST: codes for the generators in model_cards

Each line of results goes to a JSON file in `scripts/paper/results/codes` as soon as it is measured. What is there is
skipped, so repeat the command to resume.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from experiments import DATA
from run import CARDS, environment, read
from tyro.conf import Positional

from hf_gdd import AutoGenerator, GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate
from hf_gdd.classifiers.recipes import RECIPES
from hf_gdd.generators.sampling import Sampling
from hf_gdd.utils.io import write_json

RESULTS = Path(__file__).parent / "results" / "codes"
IPCS = (1, 10, 50)
PLAIN, WITHOUT = "plain draws", Sampling(distilled=False)
OTHER = "resnet10-dd"  # an architecture that codes are not matched in
# On held-out images, networks learn soft labels better by this loss than by that of recipe `tiny`.
KL = replace(RECIPES["tiny"], soft_loss="kl", temperature=2.0)
HELD_OUT = 0.2  # share of the training images that settings are judged by
BASE = {"codes_ipc": 10, "codes_steps": 300}
# One change of BASE at a time.
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "list of 50": {"codes_ipc": 50},
    "list of 50, power -1": {"codes_ipc": 50, "codes_power": -1.0},
    "list of 50, power 0.5": {"codes_ipc": 50, "codes_power": 0.5},
    "list of 50, distance of means": {"codes_ipc": 50, "codes_distance": "mean", "codes_power": 0.5},
    "list of 50, 200 steps": {"codes_ipc": 50, "codes_steps": 200},
    "list of 50, 200 steps, 32 real images": {"codes_ipc": 50, "codes_steps": 200, "codes_real": 32},
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


def judge_settings(seeds: tuple[int, ...], n: int, runs: Path) -> None:
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
                    for networks, ipcs in (("convnet2", IPCS), (OTHER, (10,)))
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
                        ipc=[ipc for ipc in ipcs if changes is None or ipc <= (BASE | changes)["codes_ipc"]],
                        protocol="fixed",
                        networks=networks,
                        with_baselines=False,
                        **options,
                    )
                    for networks, ipcs in (("convnet2", IPCS), (OTHER, (10,)))
                ]
            for part in parts:
                row |= accuracies(part)
            add(path, row | {"seconds": round(time.perf_counter() - started, 1)}, **protocol)
            print(row, flush=True)


def measure(name: str, evaluation: Callable[[], Report]) -> Report:
    """Return a report from its file, measured and written there if it is absent."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, environment() | {"report": asdict(evaluation())}, indent=1)
    print(path.name, flush=True)
    return Report.from_dict(json.loads(path.read_text())["report"])


def judge_digits(seeds: tuple[int, ...], n: int, runs: Path) -> None:
    """Judge codes on the test set of the digits, beside other small sets."""
    real, test = (ImageTensors.from_dataset("digits", split) for split in ("train", "test"))
    common, reports = {"recipe": "tiny", "progress": False}, []
    for seed in seeds:
        options = {"seed": seed, "codes_steps": 300, "output_dir": runs / f"digits-seed{seed}"}
        generator = GlobalLocalTrainer(real, preset="tiny", **options).fit()
        options = common | {"real": real, "n": n, "with_baselines": False}
        codes = {"networks": "convnet2", "ipc": IPCS, "protocol": ("fixed", "soft")}
        other = {"networks": OTHER, "ipc": (1, 10), "protocol": "fixed"}
        plain = {"networks": "convnet2", "ipc": IPCS, "protocol": "fixed", "name": PLAIN, "sampling": WITHOUT}
        for part, kind in {"codes": codes, "other": other, "plain": plain}.items():
            reports.append(measure(f"digits-{part}-seed{seed}", partial(evaluate, generator, test, **kind, **options)))
    convnet = {"networks": "convnet2", "ipc": IPCS, "bank": generator, "coresets": "herding"}
    resnet = {"networks": OTHER, "ipc": (1, 10), "full_data": False}
    for part, kind in {"convnet2": convnet, OTHER: resnet}.items():
        reports.append(measure(f"digits-real-{part}", partial(baselines, real, test, n=2 * n, **kind, **common)))
    print(Report.merge(reports).markdown())

    soft = {"networks": "convnet2", "ipc": 10, "recipe": KL, "progress": False}
    reports = [measure("digits-kl-real", partial(baselines, real, test, n=2 * n, bank=generator, **soft))]
    soft |= {"real": real, "protocol": "soft", "with_baselines": False}
    for seed in seeds:
        generator = AutoGenerator.from_pretrained(runs / f"digits-seed{seed}" / "generator")
        reports.append(measure(f"digits-kl-seed{seed}", partial(evaluate, generator, test, n=n, **soft)))
    print(Report.merge(reports).markdown())


def judge_images(n: int, runs: Path, sources: Mapping[str, Path]) -> None:
    """Give generators of size `lite` codes and a teacher, and judge them."""
    for data in ("fashion_mnist", "mnist"):
        card, name = CARDS / f"{data}-global-local-lite", DATA[data][0]
        real, test = read(data, str(sources.get(data, name)), None)
        trainer = GlobalLocalTrainer(real, preset="lite", generator=str(card), output_dir=runs / data)
        generator = trainer.fit()
        common = {"recipe": "short", "progress": False}
        small, large = {"networks": "convnet3_narrow", "ipc": IPCS, "n": n}, {"networks": "convnet3", "ipc": 10, "n": 3}
        codes = {"codes": small | {"protocol": ("fixed", "soft")}, "codes-convnet3": large | {"protocol": "fixed"}}
        codes["plain"] = small | {"protocol": "fixed", "name": PLAIN, "sampling": WITHOUT}
        references = {"real": small | {"bank": generator}, "real-convnet3": large | {"full_data": False}}
        options = common | {"real": real, "with_baselines": False}
        reports = [
            measure(f"{data}-{part}", partial(evaluate, generator, test, **kind, **options))
            for part, kind in codes.items()
        ]
        reports += [
            measure(f"{data}-{part}", partial(baselines, real, test, coresets="herding", **kind, **common))
            for part, kind in references.items()
        ]
        generator.report = Report.merge(reports)
        print(generator.report.markdown())
        generator.save_pretrained(card, repo_id=f"{CARDS.name}/{card.name}")


def main(
    part: Positional[Literal["settings", "digits", "images"]],
    seeds: tuple[int, ...] = (0, 1, 2),
    n: int = 5,
    data: dict[Literal["fashion_mnist", "mnist"], Path] | None = None,
    runs: Path = Path("runs/codes"),
) -> None:
    """Run a part of the measurements.

    Args:
        part: what to measure.
        seeds: seeds of the generators.
        n: networks of a row; random real images are drawn twice as often.
        data: folders to read data sets from instead of the Hub, as `--data fashion_mnist FOLDER mnist FOLDER`.
        runs: folder of trainings.

    """
    if part == "images":
        judge_images(n, runs, data or {})
    else:
        {"settings": judge_settings, "digits": judge_digits}[part](seeds, n, runs)


if __name__ == "__main__":
    tyro.cli(main)
