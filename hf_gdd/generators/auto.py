"""Load any saved generator by the class its config names."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hf_gdd.generators.base import Generator
from hf_gdd.hub.files import STOCK_PIPELINE
from hf_gdd.hub.loading import resolve

CLASSES = {
    "ConditionalGANGenerator": "hf_gdd.generators.gan",
    "ImageBank": "hf_gdd.generators.image_bank",
    "DiffusionGenerator": "hf_gdd.generators.diffusion",
}


class AutoGenerator:
    """Loader of every kind of generator.

    Example:
        generator = AutoGenerator.from_pretrained("me/cifar10-gdd", device="cuda")

    """

    @staticmethod
    def register(generator_class: type) -> type:
        """Register your own class, as a decorator; its saved folders can then be loaded."""
        CLASSES[generator_class.__name__] = generator_class.__module__
        return generator_class

    @staticmethod
    def from_pretrained(
        repo_or_path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        **source: Any,
    ) -> Generator:
        """Load a generator from a local folder or a Hub repo.

        The arguments are those of `PretrainedGenerator.from_pretrained`. A stock `DiTPipeline` repo is loaded as a
        `DiffusionGenerator` of all its classes.

        Raises:
            LoadError: there is no generator, or its class is not registered.

        """
        folder, config, origin = resolve(repo_or_path, (*CLASSES, STOCK_PIPELINE), **source)
        name = config["_class_name"]
        name = "DiffusionGenerator" if name == STOCK_PIPELINE else name
        return getattr(import_module(CLASSES[name]), name).load(folder, config, origin, dtype, device)
