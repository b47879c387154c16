"""The command line, made from the same dataclasses as the Python interface."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes, Positional, subcommand

from hf_gdd.classifiers.learner import NonFiniteLossError
from hf_gdd.distilled.builder import load_distilled_dataset, write_parquet
from hf_gdd.distilled.push import config_name, push_distilled_dataset
from hf_gdd.evaluation.evaluate import as_images, evaluate
from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_image_seed, check_ipc
from hf_gdd.generators.sampling import changed_sampling
from hf_gdd.hub.loading import CONFIG_NAME, PIPELINE_NAME
from hf_gdd.hub.upload import PushError
from hf_gdd.methods.diffusion_memory.config import DiffusionMemoryConfig
from hf_gdd.methods.global_local.config import GlobalLocalConfig
from hf_gdd.methods.prediction_matching.config import PredictionMatchingConfig
from hf_gdd.training.config import TrainingConfig
from hf_gdd.training.errors import RunError
from hf_gdd.training.run_folder import read_run
from hf_gdd.training.signals import Interrupted
from hf_gdd.training.trainer import Trainer
from hf_gdd.utils.device import launched, own_device

ABOUT = """Distil an image data set into a generator, and a generator into a training set of any size.

  hf-gdd distill --dataset digits --preset tiny --output-dir runs/digits
  hf-gdd materialize runs/digits/generator --ipc 10 --output-dir distilled
  hf-gdd evaluate runs/digits/generator --dataset digits --ipc 10 --networks convnet2 --recipe tiny
  hf-gdd push runs/digits/generator me/digits-gdd
"""


# The settings of each kind of generator, and what trains it: imported when it is used, for that takes seconds.
TRAINERS = {
    GlobalLocalConfig: ("hf_gdd.methods.global_local.trainer", "GlobalLocalTrainer"),
    DiffusionMemoryConfig: ("hf_gdd.methods.diffusion_memory.trainer", "DiffusionMemoryTrainer"),
    PredictionMatchingConfig: ("hf_gdd.methods.prediction_matching.trainer", "PredictionMatchingTrainer"),
}
METHODS = {name: kind for kind in TRAINERS for name in get_args(get_type_hints(kind)["method"])}

SAMPLING = ("truncation", "guidance", "steps", "scheduler")

Settings = TypeVar("Settings", bound=TrainingConfig)


def trainer_of(kind: type[TrainingConfig]) -> type[Trainer]:
    """What these settings are for."""
    module, name = TRAINERS[kind]
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Distill(Generic[Settings]):
    """Train a generator on an image data set.

    The options below are those of the method: --method global-local, dim, cgan or cgan-continued trains a GAN,
    --method self-adaptive, minimax or dit a diffusion transformer, --method prediction-matching images, each with a
    --help of its own.

    A run stopped by Ctrl-C, a signal or a crash goes on when the same command is given again. Its folder holds
    run.yaml (from which --config repeats it), metrics.jsonl, losses.png, samples, checkpoints and, at the end, the
    generator. Images, columns and classes are checked before anything is trained.

    Attributes:
        dataset: `digits` (bundled), a folder that `datasets.load_dataset` reads, or a Hub id; its train split is used.
        settings: of the method.
        output_dir: folder of the run; runs/<data set>-<method>-<preset> if not given.
        config: the run.yaml of an earlier run, or its folder, to repeat it; single options still override it.

    """

    dataset: str
    settings: OmitArgPrefixes[Settings]
    output_dir: str | None = None
    config: str | None = None

    def __call__(self) -> None:
        """Train, and say where the generator is."""
        name = f"{Path(self.dataset).name}-{self.settings.method}-{self.settings.preset}"
        folder = Path(self.output_dir or Path("runs") / name)
        trainer = trainer_of(type(self.settings))(self.dataset, config=self.settings, output_dir=folder)
        trainer.fit()
        if not trainer.processes.main:
            return
        speed = ", ".join(f"{stage} {rate:,.0f} images/s" for stage, rate in trainer.log.rates().items())
        print(f"Trained in {trainer.state.seconds:,.0f} s on {trainer.device} ({speed}).")
        print(f"Generator: {folder / 'generator'}. Pictures: {folder / 'samples'}, {folder / 'losses.png'}.")


@dataclass(frozen=True)
class Materialize:
    """Turn a generator into training sets: one Parquet folder for each IPC, which `datasets.load_dataset` reads.

    A run that was stopped goes on where it was when the same command is given again.

    Attributes:
        generator: folder or Hub repo id of a generator.
        ipc: images per class; several give several sets. A smaller set is the beginning of a larger one.
        output_dir: each set goes to <output_dir>/ipc<N>-seed<S>/train.parquet.
        seed: another seed gives other images.
        truncation: of a GAN, its own if not given: factor on the noise; under 1 trades variety for typical images.
        guidance: of a diffusion generator, its own if not given: weight of the class; 1 for none.
        steps: of a diffusion generator, its own if not given: denoising steps.
        scheduler: of a diffusion generator, its own if not given: how it steps.
        classes: of a stock pipeline, which of its classes, by name or WordNet id; all if not given.
        revision: branch, tag or commit of the repo.
        num_proc: processes; each makes a part of the images. Several GPUs divide the work if this command is started by
            `torchrun --nproc-per-node 8 --no-python`, say.
        push_to_hub: id of a data set repo that the sets are also pushed to, a configuration for each.
        private: whether that repo, if it is made now, is private.
        overwrite: replace configurations there that hold other images.

    """

    generator: Positional[str]
    ipc: tuple[int, ...] = (10,)
    output_dir: str = "distilled"
    seed: int = 0
    truncation: float | None = None
    guidance: float | None = None
    steps: int | None = None
    scheduler: Literal["ddim", "ddpm", "dpm++"] | None = None
    classes: tuple[str, ...] = ()
    revision: str | None = None
    num_proc: int | None = None
    push_to_hub: str | None = None
    private: bool = False
    overwrite: bool = False

    def __call__(self) -> None:
        """Make the sets, and say how to load them."""
        generator = _loaded(self.generator, self.revision, self.classes)
        if not self.ipc:
            raise ValueError("--ipc names no number of images per class: pass --ipc 10, say.")
        check_image_seed(generator, self.seed)
        for ipc in self.ipc:
            check_ipc(generator, ipc)
        sampling = changed_sampling(generator.sampling, **{name: getattr(self, name) for name in SAMPLING})
        for ipc in self.ipc:
            data = load_distilled_dataset(generator, ipc=ipc, seed=self.seed, sampling=sampling, num_proc=self.num_proc)
            if launched()[0] > 0:  # what all have made, one writes
                continue
            folder = Path(self.output_dir) / f"ipc{ipc}-seed{self.seed}"
            path = folder / "train.parquet"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_parquet(data, path)
            except OSError as error:
                told = f"{path} cannot be written ({error.strerror}): its images are kept; give the command again"
                raise OSError(error.errno, told) from error
            print(f'{len(data):,} images: load_dataset("{folder}", split="train")')
        if self.push_to_hub and launched()[0] == 0:
            shared = {"seed": self.seed, "sampling": sampling, "num_proc": self.num_proc}
            shared |= {"private": self.private or None, "overwrite": self.overwrite}
            push_distilled_dataset(generator, self.push_to_hub, ipc=self.ipc, **shared)
            for ipc in self.ipc:
                print(f'load_dataset("{self.push_to_hub}", "{config_name(ipc, self.seed)}", split="train")')


@dataclass(frozen=True)
class Push:
    """Publish a generator on the Hub as one commit: weights, config, card, evidence and samples.

    Log in before with `hf auth login`. What is pushed is what the folder holds; the card is written anew.

    Attributes:
        generator: folder of a generator, or the repo id of another.
        repo: id of the model repo, such as me/cifar10-gdd; made if absent.
        private: whether the repo, if it is made now, is private.
        branch: made if absent; main if not given.
        create_pr: open a pull request rather than commit.
        commit_message: of the commit.

    """

    generator: Positional[str]
    repo: Positional[str]
    private: bool = False
    branch: str | None = None
    create_pr: bool = False
    commit_message: str | None = None

    def __call__(self) -> None:
        """Push, and say how to load it."""
        commit = _loaded(self.generator).push_to_hub(
            self.repo,
            private=self.private or None,
            revision=self.branch,
            create_pr=self.create_pr,
            commit_message=self.commit_message,
        )
        print(f'{commit}\nAutoGenerator.from_pretrained("{self.repo}", revision="{commit.oid}")')


@dataclass(frozen=True)
class Evaluate:
    """Train networks on a generator's images, or on a distilled data set, and test them on real images.

    Prints one table with random real subsets of the same IPC and the full data, and writes it to report.json, in the
    generator's own folder if it is a local one, where it replaces what was there.

    Attributes:
        source: folder or Hub repo id of a generator, or the folder of a distilled data set.
        dataset: the real data set: its train split gives the baselines, its test split the test.
        ipc: images per class; several give several rows. 10 for a generator, what it holds for a bank or data set.
        protocol: `fixed` is one set of IPC images per class; `soft` is the same with the soft labels stored with it, if
            there are any, and never stands alone; these are the default. `dynamic` is that many fresh ones every epoch,
            as IPC is meant in the papers on generators; `dynamic-best5-test` also keeps the best of five looks at the
            test set; `dynamic-pool-5` takes five sets by turns, where sampling is slow.
        networks: architectures, such as convnet3, resnet18-dd, alexnet, vgg11.
        n: networks of each architecture.
        recipe: of their training: `paper`, `imagenet-subset`, `prediction-matching`, or `tiny` for the 8x8 digits.
        quality: also judge the images themselves: precision, recall, density, coverage, Frechet distance, diversity.
        zca: whether networks see whitened images; needed for a set that was made of a bank whose teacher did.
        shared_draws: all networks see the same batches, augmented alike, and differ by their first weights. It is
            quicker, but their deviation then leaves out what order, augmentation and fresh images bring.
        seed: of the images and of the first network.
        test_split: name of the real test split.
        revision: branch, tag or commit of the generator's repo.
        classes: of a stock pipeline, those of the data set, by name or WordNet id, in the data set's order.
        truncation: of a GAN, its own if not given.
        guidance: of a diffusion generator, its own if not given.
        steps: of a diffusion generator, its own if not given.
        scheduler: of a diffusion generator, its own if not given.
        image_column: the real data set's image column, if it has several.
        label_column: the real data set's label column, if it has several.
        output: where to write the report as JSON.

    """

    source: Positional[str]
    dataset: str
    ipc: tuple[int, ...] = ()
    protocol: tuple[str, ...] = ()
    networks: tuple[str, ...] = ("convnet3",)
    n: int = 5
    recipe: Literal["paper", "imagenet-subset", "prediction-matching", "tiny"] = "paper"
    quality: bool = False
    zca: bool | None = None
    shared_draws: bool = False
    seed: int = 0
    test_split: str = "test"
    revision: str | None = None
    classes: tuple[str, ...] = ()
    truncation: float | None = None
    guidance: float | None = None
    steps: int | None = None
    scheduler: Literal["ddim", "ddpm", "dpm++"] | None = None
    image_column: str | None = None
    label_column: str | None = None
    output: str | None = None

    def __call__(self) -> None:
        """Evaluate, print the table, write the report."""
        if launched()[1] > 1:
            raise ValueError("evaluate trains all networks in one process: start it without a launcher.")
        folder = Path(self.source)
        its_own = folder.is_dir() and not self.classes  # a choice of classes is another generator
        output = Path(self.output) if self.output else (folder if its_own else Path()) / "report.json"
        if output.is_dir() or not output.parent.is_dir():
            raise ValueError(f"--output {output} is no file in a folder that exists: choose another.")
        is_generator = any((folder / name).is_file() for name in (CONFIG_NAME, PIPELINE_NAME)) or not folder.is_dir()
        train = _loaded(self.source, self.revision) if is_generator else as_images(self.source, "train")
        size = (train.image_shape if is_generator else train.shape)[-1]
        columns = {"image_column": self.image_column, "label_column": self.label_column, "image_size": size}
        real, test = (as_images(self.dataset, split, **columns) for split in ("train", self.test_split))
        if self.classes:
            train = _selected(train, self.classes, real.class_names)
        given = {name: getattr(self, name) for name in SAMPLING}
        if not is_generator and any(value is not None for value in given.values()):
            raise ValueError("A data set is made already: leave out --guidance, --steps and the like.")
        report = evaluate(
            train,
            test,
            real=real,
            ipc=self.ipc or (10 if is_generator and train.max_ipc is None else None),
            protocol=self.protocol or None,
            networks=self.networks,
            n=self.n,
            recipe=self.recipe,
            quality=self.quality,
            zca=self.zca,
            shared_draws=self.shared_draws,
            sampling=changed_sampling(train.sampling, **given) if is_generator else None,
            seed=self.seed,
        )
        print(report.markdown())
        report.save(output)
        print(f"Report: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 if the run failed, 2 for bad input, 128 + n after signal n."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_gdd").setLevel(logging.INFO)
    try:
        _parse(argv)()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except (NonFiniteLossError, PushError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _loaded(source: str, revision: str | None = None, classes: Sequence[str] = ()) -> Generator:
    """A generator, on a GPU if there is one, and of these classes only.

    Raises:
        ValueError: classes are chosen of a generator that has but its own.

    """
    generator = AutoGenerator.from_pretrained(source, revision=revision, device=own_device())
    return _selected(generator, classes, classes) if classes else generator


def _selected(source: Any, classes: Sequence[str], class_names: Sequence[str]) -> Generator:
    if not isinstance(source, Generator):
        raise ValueError("--classes chooses among those of a diffusion generator: leave it out.")
    return source.select(classes, class_names)


def _parse(argv: list[str]) -> Callable[[], None]:
    kind, distill = _distill_defaults(argv[1:] if argv[:1] == ["distill"] else [])
    commands = (
        Annotated[Distill[kind], subcommand("distill", default=distill, prefix_name=False)]
        | Annotated[Materialize, subcommand("materialize", prefix_name=False)]
        | Annotated[Evaluate, subcommand("evaluate", prefix_name=False)]
        | Annotated[Push, subcommand("push", prefix_name=False)]
    )
    return tyro.cli(commands, prog="hf-gdd", args=argv, description=ABOUT)


def _distill_defaults(argv: list[str]) -> tuple[type[TrainingConfig], Distill]:
    """What --method, --preset or --config say, which the other options then override.

    Raises:
        ValueError: unknown method, a config that is not of a run, is another method's or is given beside a preset.

    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("method", "preset", "config"):
        first.add_argument(f"--{name}")
    chosen, _ = first.parse_known_args(argv)
    if chosen.config is not None and chosen.preset is not None:
        raise ValueError("Pass --config or --preset, not both: each says what all other options default to.")
    if chosen.config is not None:
        run = read_run(chosen.config)
        kind = METHODS.get(run["config"].get("method"), GlobalLocalConfig)
        settings = trainer_of(kind).config_from(run)
        return kind, Distill(dataset=run.get("dataset") or tyro.MISSING, config=chosen.config, settings=settings)
    method = chosen.method or next(iter(METHODS))
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; choose one of {', '.join(METHODS)}.")
    kind = METHODS[method]
    presets = trainer_of(kind).presets if argv else {"paper": kind()}
    settings = presets.get(chosen.preset, presets["paper"])  # a wrong name is refused later, with all else
    return kind, Distill(dataset=tyro.MISSING, settings=replace(settings, method=method))
