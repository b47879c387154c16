"""Base training config: options shared by all methods, validated on construction."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from accelerate.tracking import get_available_trackers

from hf_gdd.classifiers.networks import NETWORK_NAMES
from hf_gdd.classifiers.recipes import Recipe
from hf_gdd.utils.random import check_seed

# Settings that change what is written down, never what is computed: a run may be resumed with others.
BOOKKEEPING = ("log_every", "picture_every", "checkpoint_every", "keep_checkpoints", "trackers")
# Settings that earlier versions chose by timing: their runs recorded `auto`, or nothing, and resume with any.
CHOSEN_SETTINGS, AUTO = frozenset({"channels_last", "mixed_precision"}), "auto"
# Beginnings of names of settings that came later, of stages after all others: runs begun before them resume with any.
LATER_SETTINGS = ("codes_", "generator")
_FORMER_NAMES = {"guidance": "guidance_scale", "sampling_steps": "num_inference_steps"}

Config = TypeVar("Config", bound="TrainingConfig")


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own length and learning rate.

    Example:
        stage = Stage("gan", steps=1000, batch_size=64, lr=1e-4)

    """

    name: str
    """name in logs and messages"""
    steps: int
    """generator steps"""
    batch_size: int
    """real images a step, over all processes together"""
    lr: float
    """learning rate"""
    divided: bool = True
    """each process takes a part of the batch; else all of them take the same step on all of it"""
    size_setting: str | None = None
    """setting to lower when memory runs out; that of the batch size if None"""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that every method shares; the config of a method adds its own.

    Example:
        config = TrainingConfig(seed=3, mixed_precision="bf16")
        config = config.changed(max_steps=100)

    """

    preset: str = "paper"
    """label of the preset that the settings were taken from; changing it changes nothing else"""
    seed: int = 0
    """seed of all random draws"""
    max_steps: int | None = None
    """cap on the steps of EACH stage; None for the preset's full length"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """precision of forward passes: `no` is float32"""
    image_column: str | None = None
    """the data set's image column, if it has several"""
    label_column: str | None = None
    """the data set's label column, if it has several"""
    image_size: int | None = None
    """resize to this many pixels a side; needed for images of mixed sizes"""
    log_every: int = 50
    """steps between log lines; losses are fetched from the device only then"""
    picture_every: int = 1000
    """steps between sample grids and loss curves"""
    checkpoint_every: int = 500
    """steps between checkpoints"""
    keep_checkpoints: int = 2
    """how many checkpoints remain"""
    trackers: tuple[str, ...] = ()
    """Accelerate trackers to log to beside metrics.jsonl, such as `tensorboard`"""

    methods: ClassVar[Mapping[str, Mapping[str, str]]] = {}  # records of the methods registered with this class

    def __post_init__(self) -> None:
        require_positive(self, "log_every", "picture_every", "checkpoint_every", "keep_checkpoints", "max_steps")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                require_choice(self, name, get_args(hint))
        check_seed(self.seed)
        missing = set(self.trackers) - {str(tracker.value) for tracker in get_available_trackers()}
        if missing:
            raise ValueError(f"Tracker {', '.join(sorted(missing))} is not installed: pip install it, or leave it out.")

    def changed(self: Config, **overrides: Any) -> Config:
        """Return a copy with single settings replaced.

        Raises:
            ValueError: unknown setting, or a value out of range.

        """
        known = [f.name for f in fields(self)]
        if unknown := sorted(overrides.keys() - set(known)):
            raise ValueError(f"Unknown setting {', '.join(unknown)}; {type(self).__name__} has {', '.join(known)}.")
        return replace(self, **overrides)

    @classmethod
    def from_identity(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Return the settings that `identity` recorded."""
        return cls().changed(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide results, as primitives."""
        return {name: value for name, value in asdict(self).items() if name not in BOOKKEEPING}

    def method_record(self) -> Mapping[str, str]:
        """Return the paper and the summary that the method was registered with."""
        return self.methods.get(getattr(self, "method", ""), {})


@dataclass(frozen=True)
class LabelingConfig(TrainingConfig):
    """Settings of a method whose generator may carry a teacher.

    Example:
        config = GlobalLocalTrainer.configure("tiny", teacher_network="convnet3", teacher_epochs=40)

    """

    teacher_network: str | None = None
    """architecture of a teacher, whose logits become soft labels; None for hard labels alone"""
    teacher_epochs: int = 20
    """epochs of the teacher's training on the real data"""
    teacher_batch_size: int = 64
    """batch size of the teacher's training"""
    teacher_lr: float = 0.05
    """learning rate of the teacher's training; it falls to zero by a cosine"""
    teacher_cache: str | None = None
    """folder in which trained teachers are stored; a part of the Hugging Face cache if None"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "teacher_epochs", "teacher_batch_size", "teacher_lr")
        if self.teacher_network is not None:
            require_choice(self, "teacher_network", NETWORK_NAMES)

    @property
    def teacher_recipe(self) -> Recipe:
        """Recipe of the teacher; `max_steps` caps its training too."""
        return Recipe(
            epochs=self.teacher_epochs,
            max_steps=self.max_steps,
            batch_size=self.teacher_batch_size,
            lr=self.teacher_lr,
            schedule="cosine",
            mixed_precision=self.mixed_precision,
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide results, as primitives.

        The folder of stored teachers is left out.
        """
        return {name: value for name, value in super().identity().items() if name != "teacher_cache"}


def rename_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give recorded settings of earlier versions their present names."""
    return {_FORMER_NAMES.get(name, name): value for name, value in values.items()}


def require_positive(config: Any, *names: str) -> None:
    """Refuse fields that are not above 0 and finite; None passes."""
    _require(config, names, lambda value: 0 < value < math.inf, "it must be positive")


def require_not_negative(config: Any, *names: str) -> None:
    """Refuse fields that are below 0 or not finite."""
    _require(config, names, lambda value: 0 <= value < math.inf, "it must not be negative; 0 switches it off")


def require_share(config: Any, *names: str) -> None:
    """Refuse fields that do not lie in [0, 1)."""
    _require(config, names, lambda value: 0 <= value < 1, "it must lie in [0, 1)")


def _require(config: Any, names: Sequence[str], fits: Callable[[float], bool], remedy: str) -> None:
    for name in names:
        if (value := getattr(config, name)) is not None and not fits(value):
            raise ValueError(f"{name} is {value}; {remedy}.")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Refuse a field that is not one of `choices`."""
    if getattr(config, name) not in choices:
        raise ValueError(f"Unknown {name} {getattr(config, name)!r}; choose one of {', '.join(choices)}.")
