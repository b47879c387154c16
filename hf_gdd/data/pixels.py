"""Conversions between pixel ranges, and PNG encoding.

No other module converts between the ranges uint8 [0, 255], float [0, 1] and float [-1, 1]. Floats are
of torch's default type.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def encode_png(image: Tensor | np.ndarray) -> bytes:
    """Encode one uint8 image [C, H, W] in host memory as a PNG file.

    Raises:
        ValueError: the image is not uint8, or C is neither 1 nor 3.

    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"A PNG needs uint8 pixels [1 or 3, H, W], not {pixels.dtype} {list(pixels.shape)}.")
    pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 [0, 255] to [0, 1]."""
    return images / 255


def to_tanh(images: Tensor) -> Tensor:
    """Map uint8 [0, 255] to [-1, 1], the range inside generators."""
    return images / 127.5 - 1


def tanh_to_uint8(images: Tensor) -> Tensor:
    """Clamp and round floats [-1, 1] to uint8 [0, 255]; inverts `to_tanh` exactly."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def unit_to_uint8(images: Tensor) -> Tensor:
    """Clamp and round floats [0, 1] to uint8 [0, 255]; inverts `to_unit` exactly."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
