"""Registry of distillation methods, open to methods outside the package."""

import logging
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

from hf_gdd import methods
from hf_gdd.training.config import TrainingConfig

if TYPE_CHECKING:  # it takes seconds to import
    from hf_gdd.training.trainer import Trainer

logger = logging.getLogger("hf_gdd")

ENTRY_POINTS = "hf_gdd.methods"  # group in which other packages name modules that register methods

Config = TypeVar("Config", bound=type[TrainingConfig])


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: value of `--method`.
        config_class: its settings.
        trainer: class name, or `module:Class` where importing the trainer takes long.
        summary: one line for help texts, docs and cards.
        paper: arXiv id, or None.

    """

    name: str
    config_class: type[TrainingConfig]
    trainer: str
    summary: str
    paper: str | None = None

    @property
    def trainer_class(self) -> "type[Trainer]":
        """The trainer, imported when it is first asked for."""
        module, _, name = self.trainer.rpartition(":")
        return getattr(import_module(module or self.config_class.__module__), name)


_METHODS: dict[str, Method] = {}


def register_method(name: str, *, trainer: str, summary: str, paper: str | None = None) -> Callable[[Config], Config]:
    """Register a method, as a decorator of its config class.

    Args:
        name: value of `--method`, which the config's field `method` accepts.
        trainer: name of the `Trainer` subclass in the config's module, or `module:Class`.
        summary: one line that says what the method does.
        paper: arXiv id.

    Raises:
        ValueError: another class has registered this name.

    Example:
        @register_method("mine", trainer="MyTrainer", summary="Match the mean image of every class.")
        @dataclass(frozen=True)
        class MyConfig(TrainingConfig):
            method: Literal["mine"] = "mine"

    """

    def register(config_class: Config) -> Config:
        if "method" not in {field.name for field in fields(config_class)}:
            raise ValueError(f"{config_class.__name__} needs a field `method` that accepts {name!r}.")
        known = _METHODS.get(name)
        if known and (known.config_class.__module__, known.trainer) != (config_class.__module__, trainer):
            raise ValueError(f"Method {name!r} is registered by {known.config_class.__module__}: choose another name.")
        _METHODS[name] = Method(name, config_class, trainer, summary, paper)
        record = {"summary": summary} | ({"paper": paper} if paper else {})
        config_class.methods = {**config_class.methods, name: record}
        return config_class

    return register


def all_methods() -> dict[str, Method]:
    """Return every registered method by its name.

    They are those of this package, of entry points, and of imported plugins.
    """
    _import_own()
    _import_others()
    return dict(_METHODS)


def find_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: there is no such method.

    """
    known = all_methods()
    if name not in known:
        remedy = "If a module of yours registers it, import that first (--plugin MODULE)."
        raise ValueError(f"Unknown method {name!r}; choose one of {', '.join(known)}. {remedy}")
    return known[name]


def builtin_classes() -> dict[str, str]:
    """Return the modules of this package's trainers and configs, by class name.

    No trainer is imported.
    """
    _import_own()
    classes = {}
    for method in _METHODS.values():
        if method.config_class.__module__.startswith(f"{methods.__name__}."):
            module, _, trainer = method.trainer.rpartition(":")
            classes |= {method.config_class.__name__: method.config_class.__module__, trainer: module}
    return classes


@cache
def _import_own() -> None:
    """Import the config of every folder in this package."""
    for folder in pkgutil.iter_modules(methods.__path__):
        if folder.ispkg:
            import_module(f"{methods.__name__}.{folder.name}.config")


@cache
def _import_others() -> None:
    """Import the methods that other packages offer by entry points.

    One that fails is left out with a warning.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # it is another package's code
            logger.warning("The methods of %s cannot be imported and are left out: %s", point.value, error)
