"""hf_gdd: distil an image data set into a generator, and turn any generator into a training set of any size."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported on first use: diffusers and datasets take seconds to import, and most programs need a part of them.
_LAZY = {
    "AutoGenerator": "hf_gdd.generators.auto",
    "ConditionalGANGenerator": "hf_gdd.generators.gan",
    "DiffusionGenerator": "hf_gdd.generators.diffusion",
    "DiffusionMemoryConfig": "hf_gdd.methods.diffusion_memory.config",
    "DiffusionMemoryTrainer": "hf_gdd.methods.diffusion_memory.trainer",
    "DiffusionSampling": "hf_gdd.generators.base",
    "DistilledStream": "hf_gdd.distilled.stream",
    "GenerativeDistilledDataset": "hf_gdd.distilled.builder",
    "GlobalLocalConfig": "hf_gdd.methods.global_local.config",
    "GlobalLocalTrainer": "hf_gdd.methods.global_local.trainer",
    "ImageBank": "hf_gdd.generators.image_bank",
    "ImageTensors": "hf_gdd.data.image_tensors",
    "PredictionMatchingConfig": "hf_gdd.methods.prediction_matching.config",
    "PredictionMatchingTrainer": "hf_gdd.methods.prediction_matching.trainer",
    "Recipe": "hf_gdd.classifiers.learner",
    "Report": "hf_gdd.report",
    "Sampling": "hf_gdd.generators.base",
    "Stage": "hf_gdd.training.config",
    "Trainer": "hf_gdd.training.trainer",
    "TrainingConfig": "hf_gdd.training.config",
    "baselines": "hf_gdd.evaluation.evaluate",
    "evaluate": "hf_gdd.evaluation.evaluate",
    "load_distilled_dataset": "hf_gdd.distilled.builder",
    "push_distilled_dataset": "hf_gdd.distilled.push",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
