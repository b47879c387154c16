"""Device placement, row access, statistics and hashes of image tensors."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1024  # images summed or hashed at a time; bounds the extra memory


def fits_on_device(num_bytes: int, free_bytes: int) -> bool:
    """Return True if images take at most half of a device's free memory.

    The other half is for the training.
    """
    return num_bytes <= free_bytes // 2


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return a device with its index; None is the current GPU, else the CPU."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:  # tensors are on cuda:0, which is not equal to cuda
        return torch.device("cuda", torch.cuda.current_device())
    return device


def place(tensors: tuple[Tensor | None, ...], device: torch.device) -> tuple[Tensor | None, ...]:
    """Move tensors to a device, or to pinned host memory if they do not fit.

    The size of the first, the images, decides for all.
    """
    images = tensors[0]
    if device.type == "cuda" and images.device != device:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if not fits_on_device(images.nbytes, free_bytes):
            return tuple(tensor if tensor is None else tensor.cpu().pin_memory() for tensor in tensors)
    return tuple(tensor if tensor is None else tensor.to(device) for tensor in tensors)


def take_rows(source: Tensor, indices: Tensor) -> Tensor:
    """Return the rows int64 [B] of a tensor; rows of pinned memory are pinned too.

    Plain indexing would return pageable memory, from which a copy to the GPU is not asynchronous.
    """
    shape = (len(indices), *source.shape[1:])
    rows = torch.empty(shape, dtype=source.dtype, device=source.device, pin_memory=source.is_pinned())
    return torch.index_select(source, 0, indices, out=rows)


def draw_rows(labels: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Return the sorted numbers of counts[k] random rows of every class k."""
    rng = torch.Generator().manual_seed(seed)
    labels, chosen = labels.cpu(), []
    for label, count in enumerate(counts):
        rows = (labels == label).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=rng)[:count]])
    return torch.cat(chosen).sort().values


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
