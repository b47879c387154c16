"""What ends a run from outside, told apart by what torch and the system say of it, and told with a remedy."""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
# Gloo and TCP stores raise bare RuntimeErrors, known by the file or the function they name.
_EXCHANGES = ("gloo", "Gloo", "NCCL", "TCPStore")


class RunFault(RuntimeError):
    """Something outside the method ended a run; the message names it and says how to go on."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in _NO_MEMORY)


def exchange_failed(error: BaseException) -> bool:
    """Whether processes could not reach each other, as when one of them is gone."""
    named = isinstance(error, RuntimeError) and any(word in str(error) for word in _EXCHANGES)
    return isinstance(error, dist.DistError) or named


def disk_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of space."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def faults_told(
    folder: Path, newest: Callable[[], Path | None], batch: Callable[[], tuple[str, int] | None], processes: int
) -> Iterator[None]:
    """Say what ended a run from outside, and how to go on.

    Args:
        folder: of the run.
        newest: its newest checkpoint, if there is one.
        batch: the setting that decides how much memory the step takes that was running, and its value; None if none
            was.
        processes: of the run.

    Raises:
        RunFault: memory or disk space ran out, or another process is gone.

    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError, SafetensorError) as error:
        again = f"run the same command again: it goes on from {newest() or 'the beginning'}"
        if out_of_memory(error):
            remedy = "Give it more, or a smaller model."
            if running := batch():
                name, size = running
                smaller = size // 2 // processes * processes
                remedy = f"It was with {name}={size}: "
                remedy += f"try {name}={smaller} in a new output_dir." if smaller else "only a smaller model would fit."
            raise RunFault(f"Out of memory. {remedy} {error}") from error
        if disk_full(error):
            raise RunFault(f"{folder} cannot be written: {error}. Free some space, then {again}.") from error
        if processes > 1 and exchange_failed(error):
            raise RunFault(
                f"The processes of this run lost each other. If another one ended, its own output says why. When that "
                f"is mended, {again}. {error}"
            ) from error
        raise
