"""Reproduce the tables of Li et al. (2024), one experiment after the other.

    python scripts/paper/run.py                  # the published training, for a GPU
    python scripts/paper/run.py --size lite      # the same in small, for two CPU cores
    python scripts/paper/tables.py               # write docs/results.md from the finished experiments

Every finished experiment leaves one JSON file in `scripts/paper/results` and is skipped from then on. A training that
was stopped resumes from its last checkpoint; an evaluation starts again: repeat the command.
"""

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from experiments import DATA, REAL, SIZES, TRAIN, VARIANTS, Experiment, card_experiments, experiments
from results import RESULTS, Results, load

from hf_gdd import AutoGenerator, GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate
from hf_gdd.classifiers.coresets import coreset_features, select_coreset
from hf_gdd.generators.base import Generator
from hf_gdd.utils.io import write_json

CARDS = Path(__file__).parents[2] / "model_cards"
DESCRIBE = "git describe --always --dirty --abbrev=40 --exclude='*'"
JPEG = "909d9cd87a30b2f072f6591ca29be10ae6bfa751b836b0aa939ad2de0f3f0ab4"
# Remarks on copies of data sets, by the fingerprint of their training images.
CAVEATS = {JPEG: "CIFAR-10 here is a copy that went through JPEG (quality about 75), for training and test alike."}


@dataclass(frozen=True)
class Runner:
    """Runs experiments and writes down their results.

    Attributes:
        runs: folder of trainings and generators.
        results: folder of one JSON per finished experiment.
        local: folders to read data sets from instead of the Hub, by the last part of the Hub id.

    """

    runs: Path
    results: Path
    local: dict[str, Path] = field(default_factory=dict)

    def result(self, experiment: Experiment) -> Path:
        """Return the path of an experiment's JSON."""
        return self.results / f"{experiment.name}.json"

    def run(self, experiment: Experiment) -> None:
        """Run or resume an experiment, and write its JSON.

        Raises:
            ValueError: earlier experiments used other images under this name, or the generator is another one.

        """
        name, image_size = DATA[experiment.data]
        source = str(self.local.get(name.split("/")[-1], name))
        train, test = read(experiment.data, source, image_size)
        data = {"train": train.fingerprint, "test": test.fingerprint}
        for path in self.results.glob(f"*/{experiment.data}/*.json"):
            if not data.items() <= json.loads(path.read_text())["data"].items():
                raise ValueError(f"{experiment.data} as read from {source} is not the data that {path} is about.")
        if experiment.kind == TRAIN:
            content = self.train(experiment, train)
        else:
            content = {"report": asdict(self.evaluate(experiment, train, test))}
        caveats = [CAVEATS[train.fingerprint]] if train.fingerprint in CAVEATS else []
        record = {"experiment": asdict(experiment), **environment(), "data": data, "caveats": caveats, **content}
        self.result(experiment).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.result(experiment), record, indent=1)

    def train(self, experiment: Experiment, train: ImageTensors) -> dict[str, Any]:
        """Train a generator and save it in half precision."""
        variant, folder = VARIANTS[experiment.variant], self.runs / experiment.name
        settings = SIZES[experiment.size].settings(variant)
        settings |= {"seed": experiment.seed, "image_size": DATA[experiment.data][1]}
        if variant.start:
            settings["start_from"] = str(self.runs / experiment.needs[0].name)
        trainer = GlobalLocalTrainer(train, output_dir=folder, **settings)
        generator = trainer.fit().half()
        generator.save_pretrained(folder / "half")
        identity = trainer.identity()
        identity["config"]["start_from"] = variant.start
        content = {"run": identity, "steps": trainer.state.global_step, "seconds": trainer.state.seconds}
        return content | {"fingerprint": generator.fingerprint}

    def evaluate(self, experiment: Experiment, train: ImageTensors, test: ImageTensors) -> Report:
        """Train networks on generated, random real, all, or selected real images."""
        size, ipcs = SIZES[experiment.size], experiment.ipcs
        options = {"networks": experiment.networks or (size.network,), "n": size.n, "shared_draws": size.shared_draws}
        options["recipe"] = size.recipe_for(experiment.data)
        if experiment.kind == REAL:
            return baselines(train, test, ipc=ipcs, device=train.device, **options)
        options |= {"real": train, "with_baselines": False, "name": experiment.variant or experiment.kind}
        if experiment.variant:
            generator = self.generator(experiment.needs[0], train.device)
            return evaluate(generator, test, ipc=ipcs, protocol=experiment.protocols, **options)
        features = coreset_features(size.network, train, size.recipe)
        selected, reports = select_coreset(experiment.kind, features, train.labels, max(ipcs)), []
        for ipc in ipcs:
            images, labels = train.gather(torch.cat([rows[:ipc] for rows in selected]))
            data = replace(train, images=images, labels=labels, source=f"{train.source} [{experiment.kind}]")
            reports.append(evaluate(data, test, **options))
        return Report.merge(reports)

    def generator(self, training: Experiment, device: torch.device | None = None) -> Generator:
        """Load the generator of a finished training from its half-precision file.

        Raises:
            ValueError: it is not on this machine, or its folder holds another one.

        """
        folder, result = self.runs / training.name / "half", self.result(training)
        generator = AutoGenerator.from_pretrained(folder, device=device) if folder.is_dir() else None
        if generator is None or generator.fingerprint != json.loads(result.read_text())["fingerprint"]:
            raise ValueError(f"{folder} does not hold the generator of {result}: delete {result} to train it here.")
        return generator

    def save_card(self, judge: Experiment, results: Results) -> None:
        """Save the generator of a finished evaluation with its card in model_cards.

        The card has its rows and the baselines.
        """
        generator = self.generator(judge.needs[0])
        rows = [e for e in results.finished if e == judge or (e.data, e.kind) == (judge.data, REAL)]
        generator.report = Report.merge(results.records[each]["report"] for each in rows)
        generator.save_pretrained(CARDS / judge.card, repo_id=f"{CARDS.name}/{judge.card}")


@cache
def read(data: str, source: str, image_size: int | None) -> tuple[ImageTensors, ImageTensors]:
    """Read training and test images, named alike wherever they come from."""
    train, test = (ImageTensors.from_dataset(source, split, image_size=image_size) for split in ("train", "test"))
    return replace(train, source=f"{data}:train"), replace(test, source=f"{data}:test")


def environment() -> dict[str, Any]:
    """Return commit, device and versions."""
    cpu = f"CPU {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    packages = ("hf_gdd", "torch", "datasets", "diffusers", "accelerate", "numpy")
    git = subprocess.run(DESCRIBE, shell=True, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return {
        "commit": git.stdout.strip() or None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def main(
    size: Literal["paper", "lite"] = "paper",
    only: str = "",
    save_cards: bool = False,
    data: dict[Literal["cifar10", "fashion_mnist", "mnist"], Path] | None = None,
    runs: Path = Path("runs/paper"),
) -> None:
    """Run every experiment that is not finished.

    Args:
        size: size of everything.
        only: run experiments with this in their names alone.
        save_cards: only write the finished global-local generators of seed 0 to model_cards, with their cards.
        data: folders to read data sets from, as `--data fashion_mnist FOLDER mnist FOLDER`.
        runs: folder of trainings and generators.

    """
    results, runner = load(RESULTS, size), Runner(runs, RESULTS, data or {})
    for experiment in card_experiments(size) if save_cards else experiments(size):
        finished = runner.result(experiment).is_file()
        if only not in experiment.name or finished != save_cards:
            continue
        print(experiment.name, flush=True)
        if save_cards:
            runner.save_card(experiment, results)
        else:
            runner.run(experiment)


if __name__ == "__main__":
    tyro.cli(main)
