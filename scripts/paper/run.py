"""Reproduce the tables of Li et al. (2024), one experiment after the other.

    python scripts/paper/run.py                  # the published training, for a GPU
    python scripts/paper/run.py --size lite      # the same in small, for two CPU cores
    python scripts/paper/run.py --list           # only list what is finished and what is not
    python scripts/paper/tables.py               # write docs/results.md from the finished experiments

Every finished experiment leaves one JSON file in `scripts/paper/results` and is skipped from then on. A training that
was stopped resumes from its last checkpoint, an evaluation from its last finished row: repeat the command.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from experiments import DATA, REAL, SIZES, TRAIN, VARIANTS, Experiment, card_experiments, experiments
from results import CAVEATS, RESULTS, environment, load, report_of

from hf_gdd import AutoGenerator, GlobalLocalTrainer, ImageTensors, Report, baselines, evaluate
from hf_gdd.classifiers.coresets import coreset_features, select_coreset
from hf_gdd.generators.base import Generator
from hf_gdd.training.run_folder import stage_file
from hf_gdd.utils.io import write_json

CARDS = Path(__file__).parents[2] / "model_cards"


@dataclass(frozen=True)
class Runner:
    """Runs experiments and writes down their results.

    Attributes:
        runs: folder of trainings, generators and rows of evaluations.
        results: folder of one JSON per finished experiment.
        local: folders to read data sets from instead of the Hub, by the last part of the Hub id.

    """

    runs: Path
    results: Path
    local: Mapping[str, str]

    def result(self, experiment: Experiment) -> Path:
        """Return the path of an experiment's JSON."""
        return self.results / f"{experiment.name}.json"

    def is_finished(self, experiment: Experiment) -> bool:
        """Return True if an experiment has its JSON."""
        return self.result(experiment).is_file()

    def folder(self, experiment: Experiment) -> Path:
        """Return the folder of an experiment's run, or of its rows."""
        return self.runs / experiment.name

    def missing(self, experiment: Experiment) -> list[Path]:
        """Return files that an experiment needs and that are not on this machine."""
        if experiment.kind == TRAIN:
            needed = [stage_file(self.folder(need), "gan") for need in experiment.needs]
        else:
            needed = [self.generator_folder(need) for need in experiment.needs]
        return [path for path in needed if not path.exists()]

    def generator_folder(self, training: Experiment) -> Path:
        """Return the folder of a trained generator in half precision."""
        return self.folder(training) / "half"

    def run(self, experiment: Experiment) -> None:
        """Run or resume an experiment, and write its JSON.

        Raises:
            ValueError: earlier experiments used other images under this name, or the generator is another one.

        """
        name, image_size = DATA[experiment.data]
        train, test, source = read(experiment.data, self.local.get(name.split("/")[-1], name), image_size)
        data = {"source": source, "train": train.fingerprint, "test": test.fingerprint}
        for path in self.results.glob(f"*/{experiment.data}/*.json"):
            other = json.loads(path.read_text())["data"]
            if any(other[split] != data[split] for split in ("train", "test")):
                raise ValueError(f"{experiment.data} as read from {source} is not the data that {path} is about.")
        kinds = {TRAIN: self.train, REAL: self.baselines, "judge": self.evaluate, "best5": self.evaluate}
        content = kinds.get(experiment.kind, self.coreset)(experiment, train, test)
        caveats = [CAVEATS[train.fingerprint]] if train.fingerprint in CAVEATS else []
        record = {"experiment": asdict(experiment)} | environment() | {"data": data, "caveats": caveats}
        self.result(experiment).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.result(experiment), record | content, indent=1)

    def train(self, experiment: Experiment, train: ImageTensors, test: ImageTensors) -> dict[str, Any]:
        """Train a generator and save it in half precision."""
        variant = VARIANTS[experiment.variant]
        settings = SIZES[experiment.size].settings(variant)
        settings |= {"seed": experiment.seed, "image_size": DATA[experiment.data][1]}
        if variant.start:
            settings["start_from"] = str(self.folder(experiment.needs[0]))
        trainer = GlobalLocalTrainer(train, output_dir=self.folder(experiment), **settings)
        generator = trainer.fit().half()
        generator.save_pretrained(self.generator_folder(experiment))
        identity = trainer.identity()
        identity["config"]["start_from"] = variant.start
        content = {"run": identity, "steps": trainer.state.global_step, "seconds": trainer.state.seconds}
        return content | {"fingerprint": generator.fingerprint}

    def evaluate(self, experiment: Experiment, train: ImageTensors, test: ImageTensors) -> dict[str, Any]:
        """Train networks on the images of a generator, loaded from its half-precision file."""
        generator = self.generator(experiment.needs[0])
        options = {"real": train, "name": experiment.variant, "with_baselines": False, **self.options(experiment)}
        rows = {
            f"ipc{ipc}-{protocol}": partial(evaluate, generator, test, ipc=ipc, protocol=protocol, **options)
            for ipc in experiment.ipcs
            for protocol in experiment.protocols
        }
        return self.rows(experiment, rows, (train.fingerprint, test.fingerprint, generator.fingerprint))

    def baselines(self, experiment: Experiment, train: ImageTensors, test: ImageTensors) -> dict[str, Any]:
        """Train networks on random real images, and on all of them."""
        row = partial(baselines, train, test, device=device(), **self.options(experiment))
        rows = {f"ipc{ipc}": partial(row, ipcs=(ipc,), full_data=False) for ipc in experiment.ipcs}
        return self.rows(experiment, rows | {"all": partial(row, ipcs=())}, (train.fingerprint, test.fingerprint))

    def coreset(self, experiment: Experiment, train: ImageTensors, test: ImageTensors) -> dict[str, Any]:
        """Train networks on real images that a rule selects by the features of a network trained on all of them."""
        size, rule, options = SIZES[experiment.size], experiment.kind, self.options(experiment)

        @cache
        def selected() -> list[torch.Tensor]:
            features = coreset_features(size.network, train, size.recipe)
            return select_coreset(rule, features, train.labels, max(experiment.ipcs))

        def row(ipc: int) -> Report:
            images, labels = train.gather(torch.cat([rows[:ipc] for rows in selected()]))
            data = replace(train, images=images, labels=labels, source=f"{train.source} [{rule}]")
            return evaluate(data, test, real=train, name=rule, with_baselines=False, **options)

        rows = {f"ipc{ipc}": partial(row, ipc) for ipc in experiment.ipcs}
        return self.rows(experiment, rows, (train.fingerprint, test.fingerprint))

    def rows(
        self, experiment: Experiment, rows: Mapping[str, Callable[[], Report]], fingerprints: tuple[str, ...]
    ) -> dict[str, Any]:
        """Measure the rows of one report; rows that were measured under the same circumstances are reused."""
        now = environment()
        circumstances = repr((now["device"], now["versions"], self.options(experiment), fingerprints))
        folder = self.folder(experiment) / hashlib.sha256(circumstances.encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        for name, measure in rows.items():
            if not (path := folder / f"{name}.json").is_file():
                measure().save(path)
        return {"report": asdict(Report.merge(Report.load(folder / f"{name}.json") for name in rows))}

    def options(self, experiment: Experiment) -> dict[str, Any]:
        """Return how networks are trained."""
        size = SIZES[experiment.size]
        networks, recipe = experiment.networks or (size.network,), size.recipe_for(experiment.data)
        return {"networks": networks, "n": size.n, "recipe": recipe, "seed": 0, "shared_draws": size.shared_draws}

    def generator(self, training: Experiment) -> Generator:
        """Load the generator of a finished training.

        Raises:
            ValueError: its folder holds another one.

        """
        folder, result = self.generator_folder(training), self.result(training)
        generator = AutoGenerator.from_pretrained(folder, device=device())
        if generator.fingerprint != json.loads(result.read_text())["fingerprint"]:
            raise ValueError(
                f"{folder} does not hold the generator of {result}: delete {result} to write it again from the run."
            )
        return generator

    def save_card(self, judge: Experiment, folder: Path) -> Path:
        """Save the generator of a finished evaluation with its card, its rows and the baselines."""
        generator, both = self.generator(judge.needs[0]), (Experiment(judge.size, judge.data, REAL), judge)
        generator.report = Report.merge(report_of(each, json.loads(self.result(each).read_text())) for each in both)
        generator.save_pretrained(folder / judge.card, repo_id=f"{folder.name}/{judge.card}")
        return folder / judge.card


@cache
def read(data: str, source: str, image_size: int | None) -> tuple[ImageTensors, ImageTensors, str]:
    """Read training and test images, named alike wherever they come from, and their source."""
    train, test = (ImageTensors.from_dataset(source, split, image_size=image_size) for split in ("train", "test"))
    return replace(train, source=f"{data}:train"), replace(test, source=f"{data}:test"), train.source


def device() -> torch.device:
    """Return a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(
    size: Literal["paper", "lite"] = "paper",
    only: str = "",
    list: bool = False,
    save_cards: bool = False,
    data: dict[str, Path] | None = None,
    runs: Path = Path("runs/paper"),
    results: Path = RESULTS,
) -> None:
    """Run every experiment that is not finished.

    Args:
        size: size of everything.
        only: run experiments with this in their names alone.
        list: only list the experiments.
        save_cards: only write the finished global-local generators of seed 0 to model_cards, with their cards.
        data: folders to read data sets from, as `--data fashion_mnist FOLDER mnist FOLDER`.
        runs: folder of trainings and unfinished evaluations.
        results: folder of the JSON of finished experiments.

    """
    local = {name: str(folder) for name, folder in (data or {}).items()}
    names = {name.split("/")[-1] for name, _ in DATA.values()}
    if wrong := [name for name, folder in local.items() if name not in names or not Path(folder).is_dir()]:
        raise SystemExit(f"--data {wrong[0]}: pass one of {', '.join(sorted(names))} and a folder that exists.")
    chosen = [experiment for experiment in experiments(size) if only in experiment.name]
    if not chosen:
        raise SystemExit(f"--only {only}: no experiment of size {size} has this in its name; --list shows the names.")
    load(results, size)  # refuses results of other data or other settings
    runner = Runner(runs, results, local)
    if list:
        print("\n".join(f"{'finished' if runner.is_finished(each) else 'open':<9}{each.name}" for each in chosen))
    elif save_cards:
        for experiment in card_experiments(size):
            if experiment in chosen and runner.is_finished(experiment):
                print(runner.save_card(experiment, CARDS))
    else:
        run_all(runner, chosen)


def run_all(runner: Runner, chosen: Sequence[Experiment]) -> None:
    """Run every experiment that is not finished; one whose training was finished elsewhere is skipped."""
    for experiment in chosen:
        if runner.is_finished(experiment):
            continue
        print(experiment.name, flush=True)
        if missing := runner.missing(experiment):
            json_path = runner.result(experiment.needs[0])
            print(f"  skipped, since {missing[0]} is not here. To train it on this machine, delete {json_path}.")
        else:
            runner.run(experiment)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except KeyboardInterrupt as stop:
        command = shlex.join(["python", *sys.argv])
        sys.exit(f"{str(stop) or 'Stopped.'}\nFinished experiments and rows are stored. To continue: {command}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
