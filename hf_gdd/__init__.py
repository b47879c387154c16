"""hf_gdd: distill an image data set into a generator, and turn any generator into a training set of any size."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported on first use: diffusers and datasets take seconds to import, and most programs need a part of them.
_LAZY = {
    "AutoGenerator": "hf_gdd.generators.auto",
    "ConditionalGANGenerator": "hf_gdd.generators.gan",
    "DiffusionGenerator": "hf_gdd.generators.diffusion",
    "DiffusionSampling": "hf_gdd.generators.sampling",
    "DistilledStream": "hf_gdd.distilled.stream",
    "GenerativeDistilledDataset": "hf_gdd.distilled.builder",
    "ImageBank": "hf_gdd.generators.image_bank",
    "ImageTensors": "hf_gdd.data.image_tensors",
    "Recipe": "hf_gdd.classifiers.recipes",
    "Report": "hf_gdd.report",
    "Sampling": "hf_gdd.generators.sampling",
    "Stage": "hf_gdd.training.config",
    "Trainer": "hf_gdd.training.trainer",
    "TrainingConfig": "hf_gdd.training.config",
    "baselines": "hf_gdd.evaluation.evaluate",
    "evaluate": "hf_gdd.evaluation.evaluate",
    "load_distilled_dataset": "hf_gdd.distilled.builder",
    "push_distilled_dataset": "hf_gdd.distilled.push",
    "register_method": "hf_gdd.methods.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or the trainer or config of a method of this package."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name.endswith(("Trainer", "Config")) and name in (classes := _method_classes()):
        return getattr(import_module(classes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY, *_method_classes()]


def _method_classes() -> dict[str, str]:
    """Return the modules of the trainers and configs of this package's methods, by class name."""
    from hf_gdd.methods.registry import builtin_classes

    return builtin_classes()
