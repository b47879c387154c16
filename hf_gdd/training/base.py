"""Base of every trainer: what a method implements, and the tools it has."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_gdd.data.image_tensors import MAX_SIZE, ImageTensors
from hf_gdd.generators.base import Generator
from hf_gdd.training.config import Stage, TrainingConfig
from hf_gdd.training.distributed import Processes
from hf_gdd.training.metrics_log import MetricsLog
from hf_gdd.training.run_folder import RunFolder
from hf_gdd.training.start_point import StartPoint
from hf_gdd.training.state import TrainerState
from hf_gdd.utils.device import autocast, keep_freed_memory

logger = logging.getLogger("hf_gdd")

_FORMER_PARTS = {"state": "at"}  # of checkpoints, in earlier versions


class TrainerBase:
    """Settings, data and devices of a run, hooks that a method fills, and its tools.

    `Trainer` adds the loop, and documents the arguments.
    """

    config_class: ClassVar[type[TrainingConfig]] = TrainingConfig
    presets: ClassVar[dict[str, TrainingConfig]] = {}  # `paper`, the default, is the config's defaults if not given
    max_image_size: ClassVar[int] = MAX_SIZE  # pixels a side
    later_parts: ClassVar[frozenset[str]] = frozenset()  # that checkpoints of earlier versions lack

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
        keep_freed_memory(self.device)
        columns = {name: getattr(self.config, name) for name in ("image_column", "label_column", "image_size")}
        self.full_data = ImageTensors.from_dataset(data, device=self.device, **columns)
        self.full_data.check_trainable(self.max_image_size)
        self.dataset = str(data) if isinstance(data, (str, Path)) else None
        self.data, self.held_out = self.full_data, None  # a fit that validates holds a part out
        self.run = RunFolder(output_dir, self.identity())
        self.state, self.log_this_step = TrainerState(), False
        self.log: MetricsLog | None = None  # from `open` on
        self.bar: tqdm | None = None  # while `fit` runs

    @classmethod
    def configure(
        cls, preset: str | None = None, config: TrainingConfig | None = None, **overrides: Any
    ) -> TrainingConfig:
        """Return the settings of a preset or a config, with single ones replaced.

        Raises:
            ValueError: unknown preset or setting, a value out of range, both a preset and a config, or the config of
                another method.

        """
        if config is not None and preset is not None:
            raise ValueError(f"Pass preset={preset!r} or config, not both: each says what all settings are.")
        presets, preset = {"paper": cls.config_class()} | cls.presets, preset or "paper"
        if preset not in presets:
            raise ValueError(f"Unknown preset {preset!r}; choose one of {', '.join(presets)}.")
        config = presets[preset] if config is None else config
        if type(config) is not cls.config_class:
            raise ValueError(
                f"{cls.__name__} needs a {cls.config_class.__name__}, not a {type(config).__name__}: "
                "is the config another method's?"
            )
        return config.changed(**overrides)

    # A method implements these.

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Parts of the training, in order."""
        raise NotImplementedError

    def setup(self) -> dict[str, Any]:
        """Build everything.

        Returns:
            All that changes while training, by name, each with `state_dict` and `load_state_dict`.

        """
        raise NotImplementedError

    def step(self, indices: Tensor) -> dict[str, Tensor]:
        """Take one step on this process's part of a batch.

        Args:
            indices: this process's part of `next_indices`: row numbers of `self.data`, int64 [B / processes].

        Returns:
            Scalar tensors to log, by name, still on the device.

        """
        raise NotImplementedError

    def to_generator(self) -> Generator:
        """Return a copy of the generator as it is now."""
        raise NotImplementedError

    # A method may override these.

    @property
    def start_point(self) -> StartPoint | None:
        """The other run whose first stages replace this one's, or None."""
        return None

    def begin(self, stage: Stage) -> None:
        """Prepare a stage that is entered, not resumed in."""

    def finish(self, generator: Generator) -> Generator:
        """Complete the generator of a finished run; every process calls it."""
        return generator

    def next_indices(self, stage: Stage) -> Tensor:
        """Return the row numbers of the next step's whole batch, int64 [B]."""
        return self.batches.next(self._batch_size(stage))

    def batch_size_setting(self, stage: Stage) -> tuple[str, int]:
        """Return the setting to lower when memory runs out: its name and value."""
        name = stage.size_setting
        return (name, getattr(self.config, name)) if name else (f"{stage.name}_batch_size", self._batch_size(stage))

    def picture(self) -> Any:
        """Return the picture saved while training: a grid of samples."""
        return self.to_generator().grid()

    def check_processes(self) -> None:
        """Refuse a number of processes that the work cannot be divided among.

        Raises:
            ValueError: it does not divide the batch of every stage.

        """
        for stage in self.stages:
            size, processes = self._batch_size(stage), self.processes.count
            if stage.divided and size % processes:
                raise ValueError(
                    f"The batch of stage {stage.name!r}, {size} images, does not divide over {processes} processes: "
                    "choose another batch size or number of processes."
                )

    # State.

    @property
    def stage(self) -> Stage | None:
        """The current stage, or None after the last."""
        stages = self.stages
        return stages[self.state.stage] if self.state.stage < len(stages) else None

    def hold_out(self, fraction: float | None) -> None:
        """Hold out a part of every class for validation.

        Args:
            fraction: the part, between 0 and 1, which is a part of the run's identity; None holds out nothing.

        """
        self.data, self.held_out = self.full_data, None
        self.run.identity.pop("held_out", None)
        if fraction is not None:
            self.data, self.held_out = self.full_data.split(fraction, seed=self.config.seed)
            self.run.identity["held_out"] = fraction

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes while training."""
        return {name: part.state_dict() for name, part in self.tracked.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, also by an earlier version."""
        for name, part in self.tracked.items():
            key = name if name in state else _FORMER_PARTS.get(name)
            if key in state:
                part.load_state_dict(state[key])
            elif name not in self.later_parts:
                raise ValueError(f"The checkpoint has no {name!r}: another version or method wrote it.")

    def identity(self) -> dict[str, Any]:
        """Return the run's identity: trainer, data and settings that decide results."""
        return {
            "trainer": type(self).__name__,
            "dataset": self.dataset,
            "source": self.data.source,
            "fingerprint": self.data.fingerprint,
            "config": self.config.identity(),
        }

    # Tools for methods.

    def training_record(self) -> dict[str, Any]:
        """Return the training record of a generator.

        It holds settings, data, and the method's paper and summary.
        """
        settings, start = self.config.identity(), self.start_point
        settings = start.describe(settings) if start else settings
        return settings | self.config.method_record() | {"source": self.data.source, "license": self.data.license}

    def epoch_stage(self, name: str) -> Stage:
        """Return a stage by its settings `<name>_epochs`, `_batch_size` and `_lr`."""
        epochs, size, lr = (getattr(self.config, f"{name}_{field}") for field in ("epochs", "batch_size", "lr"))
        steps = epochs * max(1, len(self.data) // size)
        return Stage(name, min(steps, self.config.max_steps or steps), size, lr)

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass in the run's precision.

        Losses are taken in float32.
        """
        return autocast(self.device, self.config.mixed_precision)

    def update(self, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Take one optimizer step on `loss`, with gradients averaged over processes."""
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.processes.average_gradients(module.parameters())
        optimizer.step()

    def normal(self, rows: int, *shape: int) -> Tensor:
        """Draw normal noise [rows, *shape]: this process's part of a joint draw."""
        return self._draw(torch.randn, rows, *shape)

    def uniform(self, rows: int) -> Tensor:
        """Draw numbers in [0, 1), [rows]: this process's part of a joint draw."""
        return self._draw(torch.rand, rows)

    def integers(self, high: int, rows: int) -> Tensor:
        """Draw integers in [0, high), [rows]: this process's part of a joint draw."""
        return self._draw(partial(torch.randint, high), rows)

    def _draw(self, function: Callable[..., Tensor], rows: int, *shape: int) -> Tensor:
        size = (rows * self.processes.count, *shape)
        return self.processes.local_part(function(size, generator=self.random.rng, device=self.device))

    def _batch_size(self, stage: Stage) -> int:
        return min(stage.batch_size, len(self.data))
