"""Channel statistics and hashes of image tensors, the same on every device."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1024  # images summed or hashed at a time; bounds the extra memory


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and population standard deviation of each channel in [0, 1].

    Deviations are at least 1e-6. Integer sums are exact, so every device gives the same statistics to the last bit.

    Args:
        images: uint8 [N, C, H, W].

    """
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.int64, device=images.device)
    for chunk in images.split(_CHUNK):
        total += chunk.sum(dim=(0, 2, 3))
        squares += chunk.int().square().sum(dim=(0, 2, 3))
    n = images.numel() // images.shape[1]
    sums = list(zip(total.tolist(), squares.tolist(), strict=True))
    mean = tuple(s / n / 255 for s, _ in sums)
    std = tuple(max((n * q - s * s) ** 0.5 / n / 255, 1e-6) for s, q in sums)
    return mean, std


def sha256_of(header: Any, *tensors: Tensor) -> str:
    """Return the SHA-256 (hex) of a header, as JSON, and the bytes of some tensors."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for tensor in tensors:
        for chunk in tensor.split(_CHUNK):
            digest.update(chunk.cpu().numpy().tobytes())
    return digest.hexdigest()
