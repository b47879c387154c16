"""Import public names on first use: diffusers and datasets take seconds to import."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, **modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` for its modules' names (PEP 562).

    Args:
        package: dotted name of the package.
        modules: for each module of the package the public names in it, separated by spaces.

    Example:
        __getattr__, __dir__ = lazy_names(__name__, networks="build_network frozen", learner="Learner")

    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return __getattr__, lambda: sorted(home)
