"""AutoGenerator: the right class for any saved generator."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hf_gdd.generators.base import Generator
from hf_gdd.hub.loading import STOCK_PIPELINE, resolve

CLASSES = {
    "ConditionalGANGenerator": "hf_gdd.generators.gan",
    "ImageBank": "hf_gdd.generators.image_bank",
    "DiffusionGenerator": "hf_gdd.generators.diffusion",
}


class AutoGenerator:
    """Loads a generator of any kind by the class its config names."""

    @staticmethod
    def register(generator_class: type) -> type:
        """Make a class of one's own known, as a decorator; its configs name it."""
        CLASSES[generator_class.__name__] = generator_class.__module__
        return generator_class

    @staticmethod
    def from_pretrained(
        repo_or_path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        **place: Any,
    ) -> Generator:
        """Load from a local folder or a Hub repo; the arguments are those of `PretrainedGenerator.from_pretrained`.

        A stock `DiTPipeline` repo is loaded as a `DiffusionGenerator` of all its classes.

        Raises:
            LoadError: there is no generator, or its class is not one of this library.

        """
        folder, config, origin = resolve(repo_or_path, (*CLASSES, STOCK_PIPELINE), **place)
        name = config["_class_name"]
        name = "DiffusionGenerator" if name == STOCK_PIPELINE else name
        return getattr(import_module(CLASSES[name]), name).load(folder, config, origin, dtype, device)
