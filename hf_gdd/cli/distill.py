"""`hf-gdd distill`: train a generator on an image data set."""

import argparse
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Generic, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes

from hf_gdd.methods.registry import all_methods, find_method
from hf_gdd.training.config import TrainingConfig
from hf_gdd.training.run_folder import read_run

DEFAULT_METHOD = "global-local"

Settings = TypeVar("Settings", bound=TrainingConfig)


@dataclass(frozen=True)
class Distill(Generic[Settings]):
    """Train a generator on an image data set."""

    dataset: str
    """`digits` (bundled), a folder that `datasets.load_dataset` reads, or a Hub id; its train split is used"""
    settings: OmitArgPrefixes[Settings]
    """settings of the method"""
    output_dir: str | None = None
    """folder of the run; runs/<data set>-<method>-<preset> if not given"""
    config: str | None = None
    """run.yaml of an earlier run, or its folder, to repeat it; single options still override it"""
    plugin: tuple[str, ...] = ()
    """modules to import first, which register methods of their own"""

    def __call__(self) -> None:
        """Train, and print where the generator is."""
        name = f"{Path(self.dataset).name}-{self.settings.method}-{self.settings.preset}"
        folder = Path(self.output_dir or Path("runs") / name)
        trainer_class = find_method(self.settings.method).trainer_class
        trainer = trainer_class(self.dataset, config=self.settings, output_dir=folder)
        trainer.fit()
        if not trainer.processes.is_main:
            return
        speed = ", ".join(f"{stage} {rate:,.0f} images/s" for stage, rate in trainer.log.rates().items())
        print(f"Trained in {trainer.state.seconds:,.0f} s on {trainer.device} ({speed}).")
        print(f"Generator: {folder / 'generator'}. Pictures: {folder / 'samples'}, {folder / 'losses.png'}.")


def describe() -> str:
    """Return the help text, with every registered method."""
    default = find_method(DEFAULT_METHOD).config_class
    ordered = sorted(all_methods().items(), key=lambda item: item[1].config_class is not default)
    methods = "\n".join(f"  {name:<20}{method.summary}" for name, method in ordered)
    return f"""Train a generator on an image data set.

Methods, each with options of its own (add --help after --method NAME):
{methods}

A run that was stopped by Ctrl-C, a signal or a crash resumes when the same command is repeated. Its folder holds
run.yaml (from which --config repeats it), metrics.jsonl, losses.png, samples, checkpoints and, at the end, the
generator. Images, columns and classes are checked before anything is trained.
"""


def distill_defaults(argv: list[str]) -> tuple[type[TrainingConfig], Distill]:
    """Return the defaults that --method, --preset or --config choose.

    All other options override them. Modules of --plugin are imported first.

    Raises:
        ValueError: unknown plugin or method, or a config that is not of a run, is another method's, or is given beside
            a preset.

    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--plugin", nargs="+", action="extend", default=[])
    for name in ("method", "preset", "config"):
        first.add_argument(f"--{name}")
    chosen, _ = first.parse_known_args(argv)
    _import_plugins(chosen.plugin)
    if chosen.config is not None and chosen.preset is not None:
        raise ValueError("Pass --config or --preset, not both: each says what all other options default to.")
    if chosen.config is not None:
        run = read_run(chosen.config)
        method = find_method(run["config"].get("method", DEFAULT_METHOD))
        if run["trainer"] != (trainer := method.trainer.rpartition(":")[2]):
            raise ValueError(f"The config is of a {run['trainer']}, but method {method.name!r} has a {trainer}.")
        settings, dataset = method.config_class.from_identity(run["config"]), run.get("dataset") or tyro.MISSING
        return method.config_class, Distill(dataset=dataset, config=chosen.config, settings=settings)
    method = find_method(chosen.method or DEFAULT_METHOD)
    presets = method.trainer_class.presets if argv else {}
    settings = presets.get(chosen.preset or "paper", method.config_class())  # a wrong name is refused later
    return method.config_class, Distill(dataset=tyro.MISSING, settings=replace(settings, method=method.name))


def _import_plugins(modules: list[str]) -> None:
    """Import modules that register methods, also from the current folder.

    Raises:
        ValueError: there is no such module, or it cannot be imported.

    """
    if modules and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in modules:
        try:
            import_module(name)
        except Exception as error:  # it is the user's code
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"--plugin {name} cannot be imported ({reason}): repair it, or run beside it.") from error
