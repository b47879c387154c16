"""AutoGenerator: the right class for any saved generator."""

from importlib import import_module
from pathlib import Path
from typing import Any

from hf_gdd.generators.base import Generator
from hf_gdd.hub import LoadError, read_config, resolve

CLASSES = {"ConditionalGANGenerator": "hf_gdd.generators.gan"}


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
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> Generator:
        """Load from a local folder or a Hub repo; see `GeneratorModel.from_pretrained`.

        Raises:
            LoadError: there is no generator, or its class is not one of this library.

        """
        folder = resolve(repo_or_path, revision=revision, subfolder=subfolder, token=token)
        name = read_config(folder)["_class_name"]
        if name not in CLASSES:
            raise LoadError(f"{folder} holds a {name!r}; hf_gdd loads {', '.join(CLASSES)}. Is it another library's?")
        return getattr(import_module(CLASSES[name]), name).from_pretrained(folder, **kwargs)
