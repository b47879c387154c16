"""hf_gdd: distil an image data set into a generator, and turn any generator into a training set of any size."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported on first use: diffusers and datasets take seconds to import, and most programs need a part of them.
_LAZY = {
    "AutoGenerator": "hf_gdd.generators.auto",
    "ConditionalGANGenerator": "hf_gdd.generators.gan",
    "DiffusionGenerator": "hf_gdd.generators.diffusion",
    "DiffusionMemoryConfig": "hf_gdd.trainers.diffusion_memory_config",
    "DiffusionMemoryTrainer": "hf_gdd.trainers.diffusion_memory",
    "DiffusionSampling": "hf_gdd.generators.base",
    "DistilledStream": "hf_gdd.stream",
    "GenerativeDistilledDataset": "hf_gdd.builder",
    "GlobalLocalConfig": "hf_gdd.trainers.global_local_config",
    "GlobalLocalTrainer": "hf_gdd.trainers.global_local",
    "ImageBank": "hf_gdd.generators.bank",
    "ImageTensors": "hf_gdd.images",
    "PredictionMatchingConfig": "hf_gdd.trainers.prediction_matching_config",
    "PredictionMatchingTrainer": "hf_gdd.trainers.prediction_matching",
    "Recipe": "hf_gdd.classifiers",
    "Report": "hf_gdd.report",
    "Sampling": "hf_gdd.generators.base",
    "Stage": "hf_gdd.settings",
    "Trainer": "hf_gdd.training",
    "TrainingConfig": "hf_gdd.settings",
    "baselines": "hf_gdd.evaluation",
    "evaluate": "hf_gdd.evaluation",
    "load_distilled_dataset": "hf_gdd.builder",
    "push_distilled_dataset": "hf_gdd.publishing",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
