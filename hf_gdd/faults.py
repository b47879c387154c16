"""What ends a run from outside, told apart by what torch and the system say of it."""

import errno

import torch
import torch.distributed as dist


class RunFault(RuntimeError):
    """Something outside the method ended a run; the message names it and says how to go on."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def process_lost(error: BaseException) -> bool:
    """Whether an exchange between processes failed, which it does if one of them is gone."""
    # Gloo and TCP stores raise bare RuntimeErrors, known by the file or the function they name.
    named = any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "TCPStore"))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named)


def disk_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of space."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
