"""Devices, precision and memory: what every computation of the library shares."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

PRECISIONS = ("no", "bf16")
_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD, _MALLOC_MOST = -1, -3, 2**31 - 1  # of glibc's malloc.h


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass in `no` (float32) or `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def at_least_float32(x: Tensor) -> Tensor:
    """Cast reduced precision to float32.

    Sums and means of bfloat16 are too coarse to be losses.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


@cache
def keep_freed_memory(device: torch.device) -> bool:
    """Let a process that computes on a CPU reuse freed memory (glibc only).

    By default glibc returns large tensors to the system, which clears every page when the next step asks for as much
    again. On CPUs that was a third to a half of a training step's time.

    Returns:
        True if the device is a CPU and the C library supports it.

    """
    if device.type != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, _MALLOC_MOST) for option in (_MALLOC_MMAP_THRESHOLD, _MALLOC_TRIM_THRESHOLD))


def launched() -> tuple[int, int]:
    """Return the rank and the number of processes that a launcher started.

    It joins no process group.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_device() -> torch.device:
    """Return the GPU that a launcher assigned, else the current GPU, else the CPU.

    Raises:
        ValueError: more processes were launched than there are GPUs.

    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", -1)), torch.cuda.device_count()
    if local_rank >= gpus > 1:
        raise ValueError(f"Process {local_rank} has no GPU: this machine has {gpus}. Launch at most that many.")
    return torch.device("cuda", local_rank if 0 <= local_rank < gpus else torch.cuda.current_device())


@contextmanager
def default_dtype_restored() -> Iterator[None]:
    """Restore torch's default dtype when the block ends.

    diffusers leaves it changed when it fails to load a model.
    """
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def floating_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a floating-point dtype by its name.

    Raises:
        ValueError: it is none of floating point.

    """
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; pass one of floating point, such as 'float32' or 'bfloat16'.")
    return named
