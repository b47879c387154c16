"""hf_gdd: distill an image data set into a generator of training sets of any size."""

from importlib import import_module
from typing import Any

from hf_gdd.utils.lazy import lazy_names

__version__ = "0.1.0"

_import_name, _public_names = lazy_names(
    __name__,
    **{
        "classifiers": "Recipe",
        "data": "ImageTensors",
        "distilled": "DistilledStream GenerativeDistilledDataset load_distilled_dataset push_distilled_dataset",
        "evaluation.evaluate": "baselines evaluate",
        "generators": "AutoGenerator ConditionalGANGenerator DiffusionGenerator DiffusionSampling ImageBank Sampling",
        "methods": "register_method",
        "report": "Report",
        "training": "Stage Trainer TrainingConfig",
    },
)


def __getattr__(name: str) -> Any:
    """Import a public name, or the trainer or config of a method of this package."""
    if name.endswith(("Trainer", "Config")) and name in (classes := _method_classes()):
        return getattr(import_module(classes[name]), name)
    return _import_name(name)


def __dir__() -> list[str]:
    return [*globals(), *_public_names(), *_method_classes()]


def _method_classes() -> dict[str, str]:
    """Return the modules of this package's trainers and configs, by class name."""
    from hf_gdd.methods.registry import builtin_classes

    return builtin_classes()
