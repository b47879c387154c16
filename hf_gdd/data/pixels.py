"""The ranges of pixels, and the one file format they are kept in: no other module converts between them."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def encode_png(image: Tensor | np.ndarray) -> bytes:
    """Return the PNG file of one uint8 image [C,H,W] in host memory; ValueError unless C is 1 or 3."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"A PNG is made of uint8 [1 or 3,H,W], not {pixels.dtype} {list(pixels.shape)}.")
    pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 [0,255] to torch's default float type [0,1]."""
    return images / 255


def to_tanh(images: Tensor) -> Tensor:
    """Map uint8 [0,255] to torch's default float type [-1,1], the range inside generators."""
    return images / 127.5 - 1


def tanh_to_uint8(images: Tensor) -> Tensor:
    """Map floats [-1,1] to the nearest uint8 [0,255], clamping the rest; undoes `to_tanh` exactly."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def unit_to_uint8(images: Tensor) -> Tensor:
    """Map floats [0,1] to the nearest uint8 [0,255], clamping the rest; undoes `to_unit` exactly."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
