"""The one training loop: stages, progress, metrics, pictures, checkpoints, exact resume, clean stops."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_gdd.data.image_tensors import MAX_SIZE, ImageTensors
from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator
from hf_gdd.training.config import Stage, TrainingConfig
from hf_gdd.training.distributed import Processes
from hf_gdd.training.errors import faults_told
from hf_gdd.training.metrics_log import MetricsLog, NonFiniteLossError
from hf_gdd.training.run_folder import RunFolder, save_state, stage_file
from hf_gdd.training.state import Batches, Interrupted, Place, stop_signals
from hf_gdd.utils.device import Arithmetic, keep_freed_memory
from hf_gdd.utils.random import Random

logger = logging.getLogger("hf_gdd")


class Trainer:
    """Distils a data set into a generator; a method is a subclass.

    It writes `stages`, `setup`, `step` and `to_generator`.

    Args:
        data: a `datasets` object (a `DatasetDict` gives its train split), a Hub id, a folder, or "digits".
        preset: name of a set of settings; `paper` if there is no config either.
        output_dir: the run's folder. A folder with the same run in it is resumed; with another, refused.
        config: all settings, instead of a preset.
        overrides: single settings.

    Raises:
        ValueError: anything about the data, the config or the folder that would make the run fail later.

    """

    config_class: ClassVar[type[TrainingConfig]] = TrainingConfig
    presets: ClassVar[dict[str, TrainingConfig]] = {"paper": TrainingConfig()}
    largest: ClassVar[int] = MAX_SIZE  # side of an image in pixels
    channels: int = 0  # of the convolutions that most of a step goes into, if the memory layout matters to them

    def __init__(
        self,
        data: Any,
        *,
        preset: str | None = None,
        output_dir: str | Path,
        config: TrainingConfig | None = None,
        **overrides: Any,
    ) -> None:
        self.config = self.configure(preset, config, **overrides)
        # Accelerate's own precision is set once for a whole process, so a second run could not choose another.
        trackers = list(self.config.trackers) or None
        self.accelerator = Accelerator(mixed_precision="no", log_with=trackers, project_dir=str(output_dir))
        if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
            logger.warning("The launcher's mixed precision is not used: it is the setting mixed_precision of the run.")
        self.processes, self.device = Processes(self.accelerator), self.accelerator.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.whole = ImageTensors.from_dataset(
            data,
            image_column=self.config.image_column,
            label_column=self.config.label_column,
            image_size=self.config.image_size,
            device=self.device,
        )
        self.whole.require_trainable(self.largest)
        self.dataset = str(data) if isinstance(data, (str, Path)) else None
        self.data, self.held_out = self.whole, None  # a fit that validates holds a part out
        self.run = RunFolder(output_dir, self.identity())
        self.at, self.logging = Place(), False
        self.log: MetricsLog | None = None  # from the first step on

    @classmethod
    def configure(
        cls, preset: str | None = None, config: TrainingConfig | None = None, **overrides: Any
    ) -> TrainingConfig:
        """The settings of a preset or a config, with single ones replaced.

        Raises:
            ValueError: unknown preset or setting, a value out of range, both a preset and a config, or the config of
                another method.

        """
        if config is not None and preset is not None:
            raise ValueError(f"Pass preset={preset!r} or config, not both: each says what all settings are.")
        preset = preset or "paper"
        if preset not in cls.presets:
            raise ValueError(f"Unknown preset {preset!r}; choose one of {', '.join(cls.presets)}.")
        config = cls.presets[preset] if config is None else config
        if type(config) is not cls.config_class:
            raise ValueError(
                f"{cls.__name__} needs a {cls.config_class.__name__}, not a {type(config).__name__}: "
                "is the config another method's?"
            )
        return config.changed(**overrides)

    @classmethod
    def config_from(cls, run: Mapping[str, Any]) -> TrainingConfig:
        """The config that a run's file describes.

        Raises:
            ValueError: it is of another trainer, or has settings that this version does not know.

        """
        if run["trainer"] != cls.__name__:
            raise ValueError(f"The config is of a {run['trainer']}, not a {cls.__name__}: use that method's command.")
        return cls.config_class.from_identity(run["config"])

    # What a method writes.

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The parts of the training, in order."""
        raise NotImplementedError

    def setup(self) -> dict[str, Any]:
        """Build everything; returns all that changes while training, each with `state_dict` and `load_state_dict`."""
        raise NotImplementedError

    def begin(self, stage: Stage) -> None:
        """Prepare for a stage that is entered, not resumed in."""

    def step(self, indices: Tensor) -> dict[str, Tensor]:
        """One step on this process's part of `next_rows`; returns scalars to log, still on the device."""
        raise NotImplementedError

    def next_rows(self, stage: Stage) -> Tensor:
        """What the next step works on, of which each process takes a part: row numbers of `self.data`."""
        return self.batches.next(self._batch_size(stage))

    def memory_setting(self, stage: Stage) -> tuple[str, int]:
        """The setting that decides how much memory a step of this stage takes, and its value."""
        return f"{stage.name}_batch_size", self._batch_size(stage)

    def taken_over(self) -> dict[str, Any] | None:
        """The state of another run that this one goes on from, or None."""
        return None

    def to_generator(self) -> Generator:
        """The generator as it is now, apart from the training."""
        raise NotImplementedError

    def picture(self) -> Any:
        """What is looked at while training: a grid of samples."""
        return self.to_generator().grid()

    # The loop.

    def fit(
        self,
        validate: Callable[[Generator, ImageTensors], float] | None = None,
        every: int | None = None,
        held_out: float = 0.1,
    ) -> Generator:
        """Train, or go on where this run stopped, and save the generator to `<output_dir>/generator`.

        Args:
            validate: scores a generator on held-out training images, higher is better; the best is returned rather
                than the last. Only then is a part of the training set held out.
            every: steps of the last stage between validations; only at its end if None.
            held_out: the part of every class that is held out for `validate`, between 0 and 1.

        Raises:
            NonFiniteLossError: a loss became infinite or not a number.
            RunFault: no memory or disk space was left, or another process of the run is gone.
            Interrupted: SIGINT or SIGTERM came; the run can be resumed.
            ValueError: the folder holds another run, or something else that the run would fail of later.

        """
        with self._faults_told():
            return self._fit(validate, every, held_out)

    def _fit(
        self, validate: Callable[[Generator, ImageTensors], float] | None, every: int | None, held_out: float
    ) -> Generator:
        self._open(held_out if validate else None)
        with self._bar() as bar, stop_signals() as stop:
            while self.at.stage < len(self.stages):
                stage = self.stages[self.at.stage]
                bar.set_description(f"{stage.name} ({self.at.stage + 1}/{len(self.stages)})")
                while self.at.step < stage.steps:
                    self._advance(stage, bar)
                    if validate and self.at.stage == len(self.stages) - 1 and self._due(every or stage.steps, stage):
                        self._select(validate)
                    signum = self.processes.agreed_stop(stop, ask=self.logging)
                    if signum or self._due(self.config.checkpoint_every, stage):
                        self._checkpoint(stage, bar)
                    if signum:
                        raise Interrupted(signum, self.at.total, self.run.path)
                self._finish(stage)
        for tracker in self.accelerator.trackers:  # end_training would also end the group that a next run needs
            tracker.finish()
        return self._save(self.to_generator() if validate is None else self._load_best())

    def _faults_told(self) -> AbstractContextManager:
        def batch() -> tuple[str, int] | None:
            running = self.log is not None and self.at.stage < len(self.stages)
            return self.memory_setting(self.stages[self.at.stage]) if running else None

        return faults_told(self.run.path, self.run.newest_checkpoint, batch, self.processes.count)

    def _open(self, held_out: float | None) -> None:
        """Check the folder, build everything, claim the folder, and return to the last checkpoint if there is one."""
        self.data, self.held_out, self.log = self.whole, None, None
        self.run.identity.pop("held_out", None)
        if held_out is not None:
            self.data, self.held_out = self.whole.split(held_out, seed=self.config.seed)
            self.run.identity["held_out"] = held_out
        self.run.check()
        self.check_processes()
        state = self.run.last_checkpoint(self.device)
        self.arithmetic = Arithmetic(self.config.mixed_precision, self.channels, self.device)
        if begun := state or self.taken_over():
            self.arithmetic.load_state_dict(begun["arithmetic"])
            asked, begun_in = self.config.mixed_precision, self.arithmetic.way.precision
            if asked not in ("auto", begun_in):
                raise ValueError(f"mixed_precision is {asked!r}, but was {begun_in!r} so far: pass that, or 'auto'.")
        else:
            self.arithmetic.choose(self.processes.mean)
        self.config = self.config.changed(mixed_precision=self.arithmetic.way.precision)  # as a generator records it
        self.random, self.at = Random(self.config.seed, self.device), Place()
        self.batches = Batches(len(self.data), self.random)
        kept = {"arithmetic": self.arithmetic, "random": self.random, "batches": self.batches, "at": self.at}
        self.tracked = kept | self.setup()
        if self.processes.main:
            self.run.claim()
        self.processes.wait()
        if state is not None:
            self.load_state_dict(state)
            logger.info("Resuming %s after step %d.", self.run.path, self.at.total)
        elif self.stages:
            self.begin(self.stages[0])
        self.accelerator.init_trackers("hf_gdd", config={k: str(v) for k, v in asdict(self.config).items()})
        self.log = MetricsLog(self.run, self.processes.main, self._track, self.processes.mean)
        self.log.resume(self.at.total, self.at.seconds)

    def _advance(self, stage: Stage, bar: tqdm) -> None:
        started = time.perf_counter()
        indices = self.next_rows(stage)
        self.logging = self._due(self.config.log_every, stage, ahead=1)
        metrics = self.step(self.processes.part(indices))
        self.at.step += 1
        self.at.total += 1
        self.log.add(self.at.total, indices.numel(), metrics)
        if self.logging:
            self.log.fetch()  # waits for the device, so that its time is counted
        self.at.seconds += time.perf_counter() - started
        bar.update()
        if self.logging:
            self._flush(stage, bar)
        if self._due(self.config.picture_every, stage) and self.processes.main:
            self._pictures()

    def _track(self, means: dict[str, float], step: int) -> None:
        self.accelerator.log(means, step=step)

    def _due(self, every: int, stage: Stage, ahead: int = 0) -> bool:
        step = self.at.step + ahead
        return step % every == 0 or step == stage.steps

    def _flush(self, stage: Stage, bar: tqdm) -> None:
        try:
            record = self.log.flush(stage.name, self.at.seconds)
        except NonFiniteLossError as error:
            last = self.run.newest_checkpoint()
            raise NonFiniteLossError(
                f"{error} The last good checkpoint is {last or 'none: the run is too young'}. Lower the learning rate, "
                "or train without mixed precision, in a new output_dir."
            ) from error
        shown = {name: f"{value:.3g}" for name, value in record.items() if name not in ("step", "stage", "seconds")}
        bar.set_postfix({name.replace("images_per_second", "img/s"): v for name, v in shown.items() if "/" not in name})

    def _checkpoint(self, stage: Stage, bar: tqdm) -> None:
        self._flush(stage, bar)  # which refuses to save what is not finite
        self._require_finite()
        state = self.state_dict()  # for which processes may need each other
        if self.processes.main:
            self.run.save_checkpoint(self.at.total, state, keep=self.config.keep_checkpoints)

    def _require_finite(self) -> None:
        """Weights can be spoilt by the gradient of a loss that is itself still finite."""
        for part, module in self.tracked.items():
            if not isinstance(module, nn.Module):
                continue
            weights = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
            finite = torch.stack([tensor.isfinite().all() for tensor in weights]).all()
            if self.processes.mean(finite.float()) < 1:
                last = self.run.newest_checkpoint()
                raise NonFiniteLossError(
                    f"The weights of the {part} are not finite after step {self.at.total}. The last good checkpoint is "
                    f"{last or 'none: the run is too young'}. Lower the learning rate, in a new output_dir."
                )

    def _finish(self, stage: Stage) -> None:
        """Keep the state at the end of a stage, and enter the next."""
        state = self.state_dict()
        if self.processes.main:
            save_state(stage_file(self.run.path, stage.name), state)
        self.at.stage, self.at.step = self.at.stage + 1, 0
        if self.at.stage < len(self.stages):
            self.begin(self.stages[self.at.stage])

    def _select(self, validate: Callable[[Generator, ImageTensors], float]) -> None:
        generator = self.to_generator()
        score = float(validate(generator, self.held_out))
        logger.info("Validation after step %d: %.4f.", self.at.total, score)
        if self.at.best is None or score > self.at.best:
            self.at.best = score
            if self.processes.main:
                generator.save_pretrained(self.run.path / "best")

    def _load_best(self) -> Generator:
        self.processes.wait()
        return AutoGenerator.from_pretrained(self.run.path / "best", device=self.device)

    def _save(self, generator: Generator) -> Generator:
        if self.processes.main:
            generator.save_pretrained(self.run.path / "generator")
        self.processes.wait()
        return generator

    def _pictures(self) -> None:
        folder = self.run.path / "samples"
        folder.mkdir(exist_ok=True)
        self.picture().save(folder / f"step-{self.at.total:09d}.png")
        self.log.draw()

    def _bar(self) -> tqdm:
        total = sum(stage.steps for stage in self.stages)
        hidden = {} if self.processes.main else {"disable": True}
        return tqdm(total=total, initial=self.at.total, unit="step", dynamic_ncols=True, **hidden)

    # State and steps.

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training."""
        return {name: part.state_dict() for name, part in self.tracked.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name, part in self.tracked.items():
            part.load_state_dict(state[name])

    def identity(self) -> dict[str, Any]:
        """What makes this run this run, as primitives; from it the run can be repeated."""
        return {
            "trainer": type(self).__name__,
            "dataset": self.dataset,
            "source": self.data.source,
            "fingerprint": self.data.fingerprint,
            "config": self.config.identity(),
        }

    def computing(self) -> AbstractContextManager:
        """The context of a forward pass, in the way that was chosen for the run; losses are taken in float32."""
        return self.arithmetic.computing()

    def update(self, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One optimiser step of `module` on `loss`, its gradients averaged over processes."""
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.processes.average_gradients(module.parameters())
        optimizer.step()

    def _batch_size(self, stage: Stage) -> int:
        return min(stage.batch_size, len(self.data))

    def check_processes(self) -> None:
        """Refuse a number of processes that the work cannot be divided among.

        Raises:
            ValueError: it does not divide the batch of every stage.

        """
        for stage in self.stages:
            size, processes = self._batch_size(stage), self.processes.count
            if size % processes:
                raise ValueError(
                    f"The batch of stage {stage.name!r}, {size} images, does not divide over {processes} processes: "
                    "choose another batch size or number of processes."
                )
