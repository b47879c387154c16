"""Distilled codes in a file: what the first images of a class are made from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_gdd.generators.checks import MAX_IMAGES
from hf_gdd.hub.files import CODES, CONFIG_NAME, LoadError

NAME = "codes"  # of the tensor in its file


def check_codes(codes: Tensor, num_classes: int, noise_dim: int) -> None:
    """Raise ValueError unless codes are finite and fit the generator.

    Args:
        codes: [K, M, noise_dim].
        num_classes: K of the generator.
        noise_dim: of the generator.

    """
    shape = tuple(codes.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (num_classes, noise_dim) or not shape[1]:
        raise ValueError(
            f"Codes {shape} do not fit a generator of {num_classes} classes and noise_dim {noise_dim}: they must be "
            f"({num_classes}, M, {noise_dim}), with M of 1 or more."
        )
    if not codes.isfinite().all():
        raise ValueError("The codes hold values that are not finite in half precision: their training failed.")


def check_distilled_ipc(distilled_ipc: int, num_classes: int) -> None:
    """Raise ValueError unless M is a whole number from 0 that a set can have."""
    if not isinstance(distilled_ipc, int) or not 0 <= distilled_ipc <= MAX_IMAGES // num_classes:
        raise ValueError(
            f"distilled_ipc is {distilled_ipc!r}; it must be a whole number in 0..{MAX_IMAGES // num_classes:,} for "
            f"{num_classes} classes."
        )


def write_codes(folder: Path, codes: Tensor) -> None:
    """Write codes as one safetensors file."""
    save_file({NAME: codes.detach().cpu().contiguous()}, folder / CODES)


def read_codes(folder: Path, config: Mapping[str, Any]) -> Tensor | None:
    """Read the codes that a config names, [K, M, noise_dim]; None if it names none.

    Raises:
        LoadError: the file is absent, damaged or of another shape, or there is one that the config does not name.

    """
    path, count = folder / CODES, config.get("distilled_ipc", 0)
    if not count:
        if path.is_file():
            raise LoadError(f"{path} holds distilled codes, but {CONFIG_NAME} names none: fetch or save it again.")
        return None
    expected = [len(config["class_names"]), count, config.get("noise_dim")]
    try:
        with safe_open(path, "pt") as file:  # reads the header alone
            names = list(file.keys())
            part = file.get_slice(NAME) if names == [NAME] else None
            held = (part.get_dtype(), part.get_shape()) if part else names
            if held != ("F16", expected):
                raise LoadError(
                    f"{path} holds {held}, but {CONFIG_NAME} describes codes float16 {expected}: fetch or save it "
                    "again."
                )
            return file.get_tensor(NAME)
    except (OSError, SafetensorError) as error:
        raise LoadError(f"The distilled codes {path} cannot be read ({error}): fetch or save it again.") from error
