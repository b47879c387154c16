"""Distilled codes: what the first images of a class are made from, and their file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_gdd.generators.checks import MAX_IMAGES
from hf_gdd.hub.files import CODES, CONFIG_NAME, LoadError

NAME = "codes"  # of the tensor in its file
DTYPES = {torch.float16: "F16", torch.int32: "I32"}  # as the header of the file names them
_NONE = torch.iinfo(torch.int64).max  # sorts behind every index


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


def check_chosen(chosen: Tensor, num_classes: int) -> None:
    """Raise ValueError unless numbers of chosen draws fit the generator.

    Args:
        chosen: [K, M].
        num_classes: K of the generator.

    """
    shape, dtype = tuple(chosen.shape), str(chosen.dtype).removeprefix("torch.")
    if len(shape) != 2 or shape[0] != num_classes or not shape[1]:
        raise ValueError(
            f"Chosen draws {shape} do not fit a generator of {num_classes} classes: they must be ({num_classes}, M), "
            "with M of 1 or more."
        )
    if chosen.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"Chosen draws are whole numbers, int32 or int64, not {dtype}.")
    if int(chosen.min()) < 0 or int(chosen.max()) >= MAX_IMAGES:
        raise ValueError(
            f"Chosen draws are numbers in 0..{MAX_IMAGES - 1:,}, not {int(chosen.min()):,} to {int(chosen.max()):,}."
        )
    if (chosen.sort(1).values.diff(dim=1) == 0).any():
        raise ValueError("A draw is chosen twice for one class: its image would be in a set twice.")


def draw_numbers(chosen: Tensor, indices: Tensor) -> Tensor:
    """Return the number of the plain draw that each image is.

    Image i < M is chosen draw i. Image i >= M is draw i itself, unless it was chosen. The j-th of those that were, in
    rising order, gives its place to the j-th draw below M that was not. So numbers of images and of draws are a
    permutation: no draw is repeated or lost.

    Args:
        chosen: M different draws of the class of each image, [B, M].
        indices: numbers of the images, int64 [B].

    Returns:
        int64 [B].

    """
    chosen, (rows, count) = chosen.long(), chosen.shape
    below = torch.zeros(rows, count + 1, dtype=torch.bool, device=chosen.device)
    below = below.scatter(1, chosen.clamp(max=count), True)[:, :count]  # the last column collects draws from M on
    free = torch.arange(count, device=chosen.device).masked_fill(below, _NONE).sort(1).values
    far = chosen.masked_fill(chosen < count, _NONE).sort(1).values
    places = indices[:, None]
    rank = torch.searchsorted(far, places).clamp(max=count - 1)
    later = torch.where(far.gather(1, rank) == places, free.gather(1, rank), places)
    return torch.where(places < count, chosen.gather(1, places.clamp(max=count - 1)), later)[:, 0]


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


def read_codes(
    folder: Path, config: Mapping[str, Any], num_classes: int, layout: tuple[torch.dtype, tuple[int, ...]] | None
) -> Tensor | None:
    """Read the codes that a config names, [K, M, ...]; None if it names none.

    Args:
        folder: of the generator.
        config: of the generator.
        num_classes: K.
        layout: dtype and shape of the code of one image; None for a kind of generator without codes.

    Raises:
        LoadError: the file is absent, damaged or of another shape, or there is one that the config does not name.

    """
    path, count = folder / CODES, config.get("distilled_ipc", 0)
    if not count:
        if path.is_file():
            raise LoadError(f"{path} holds distilled codes, but {CONFIG_NAME} names none: fetch or save it again.")
        return None
    if layout is None:
        raise LoadError(f"{CONFIG_NAME} in {folder} names distilled codes, which this kind of generator cannot have.")
    dtype, expected = layout[0], [num_classes, count, *layout[1]]
    try:
        with safe_open(path, "pt") as file:  # reads the header alone
            names = list(file.keys())
            part = file.get_slice(NAME) if names == [NAME] else None
            held = (part.get_dtype(), part.get_shape()) if part else names
            if held != (DTYPES[dtype], expected):
                raise LoadError(
                    f"{path} holds {held}, but {CONFIG_NAME} describes codes {str(dtype).removeprefix('torch.')} "
                    f"{expected}: fetch or save it again."
                )
            return file.get_tensor(NAME)
    except (OSError, SafetensorError) as error:
        raise LoadError(f"The distilled codes {path} cannot be read ({error}): fetch or save it again.") from error
