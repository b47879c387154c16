"""Place image tensors on a device or in host memory, and read their rows."""

import torch
from torch import Tensor


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return a device with its index; None is the current GPU, else the CPU."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:  # tensors are on cuda:0, which is not equal to cuda
        return torch.device("cuda", torch.cuda.current_device())
    return device


def place(tensors: tuple[Tensor | None, ...], device: torch.device) -> tuple[Tensor | None, ...]:
    """Move tensors to a device, or to pinned host memory if they do not fit.

    They fit if the first, the images, takes at most half of the free memory. The other half is for the training.
    """
    images = tensors[0]
    if device.type == "cuda" and images.device != device:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if images.nbytes > free_bytes // 2:
            return tuple(tensor if tensor is None else tensor.cpu().pin_memory() for tensor in tensors)
    return tuple(tensor if tensor is None else tensor.to(device) for tensor in tensors)


def take_rows(source: Tensor, indices: Tensor) -> Tensor:
    """Return the rows int64 [B] of a tensor; rows of pinned memory are pinned too.

    Plain indexing would return pageable memory, from which a copy to the GPU is not asynchronous.
    """
    shape = (len(indices), *source.shape[1:])
    rows = torch.empty(shape, dtype=source.dtype, device=source.device, pin_memory=source.is_pinned())
    return torch.index_select(source, 0, indices, out=rows)
