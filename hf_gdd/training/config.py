"""What a training is told: the settings every method shares, checked before any work."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from accelerate.tracking import get_available_trackers

from hf_gdd.utils.random import check_seed

# Settings that change what is written down, never what is computed: a run may be resumed with others.
BOOKKEEPING = ("log_every", "picture_every", "checkpoint_every", "keep_checkpoints", "trackers")

Config = TypeVar("Config", bound="TrainingConfig")


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own length and rate.

    Attributes:
        name: as logged.
        steps: generator steps.
        batch_size: real images a step, over all processes together.
        lr: learning rate.

    """

    name: str
    steps: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class TrainingConfig:
    """What every method is told.

    Attributes:
        preset: label of the preset that the settings were taken from; changing it changes nothing else.
        seed: of all random draws.
        max_steps: cap on the steps of EACH stage; None for the preset's full length.
        mixed_precision: `no`, `bf16`, or `auto` for the one that a run finds faster on the machine it begins on.
        image_column: the data set's image column, if it has several.
        label_column: the data set's label column, if it has several.
        image_size: resize to this many pixels a side; needed for images of mixed sizes.
        log_every: steps between log lines; losses are fetched from the device only then.
        picture_every: steps between sample grids and loss curves.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of them remain.
        trackers: Accelerate trackers to log to beside metrics.jsonl, such as `tensorboard`.

    """

    preset: str = "paper"
    seed: int = 0
    max_steps: int | None = None
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    image_column: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    log_every: int = 50
    picture_every: int = 1000
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("log_every", "picture_every", "checkpoint_every", "keep_checkpoints"):
            require_positive(self, name)
        if self.max_steps is not None:
            require_positive(self, "max_steps")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                require_choice(self, name, get_args(hint))
        check_seed(self.seed)
        missing = set(self.trackers) - {str(tracker.value) for tracker in get_available_trackers()}
        if missing:
            raise ValueError(f"Tracker {', '.join(sorted(missing))} is not installed: pip install it, or leave it out.")

    def changed(self: Config, **overrides: Any) -> Config:
        """A copy with single settings replaced.

        Raises:
            ValueError: unknown setting, or a value out of range.

        """
        known = [f.name for f in fields(self)]
        if unknown := sorted(overrides.keys() - set(known)):
            raise ValueError(f"Unknown setting {', '.join(unknown)}; {type(self).__name__} has {', '.join(known)}.")
        return replace(self, **overrides)

    @classmethod
    def from_identity(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """The settings that `identity` wrote down."""
        return cls().changed(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def identity(self) -> dict[str, Any]:
        """What is computed, as primitives."""
        return {name: value for name, value in asdict(self).items() if name not in BOOKKEEPING}


def require_positive(config: Any, name: str) -> None:
    """Refuse a field that is not above 0 and finite."""
    if not 0 < getattr(config, name) < math.inf:
        raise ValueError(f"{name} is {getattr(config, name)}; it must be positive.")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Refuse a field that is not one of `choices`."""
    if getattr(config, name) not in choices:
        raise ValueError(f"Unknown {name} {getattr(config, name)!r}; choose one of {', '.join(choices)}.")
