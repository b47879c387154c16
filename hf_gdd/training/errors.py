"""Turn memory, disk and process failures into messages that say how to resume."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from hf_gdd.utils.io import disk_full

if TYPE_CHECKING:
    from hf_gdd.training.base import TrainerBase

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
# Gloo and TCP stores raise bare RuntimeErrors, known by the file or the function they name.
_COMMUNICATION = ("gloo", "Gloo", "NCCL", "TCPStore")


class RunError(RuntimeError):
    """A run ended for a reason outside the method; the message says how to resume."""


def out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that a device or the host had no memory left."""
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in _NO_MEMORY)


def lost_process(error: BaseException) -> bool:
    """Return True if an error says that processes could not reach each other."""
    named = isinstance(error, RuntimeError) and any(word in str(error) for word in _COMMUNICATION)
    return isinstance(error, dist.DistError) or named


@contextmanager
def explain_failures(trainer: "TrainerBase") -> Iterator[None]:
    """Raise `RunError` with a remedy where memory, disk or another process failed.

    Raises:
        RunError: memory or disk space ran out, or another process is gone.

    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError, SafetensorError) as error:
        run, processes = trainer.run, trainer.processes.count
        again = f"run the same command again: it goes on from {run.newest_checkpoint() or 'the beginning'}"
        if out_of_memory(error):
            remedy = "Give it more, or a smaller model."
            if trainer.log and trainer.stage:
                name, size = trainer.batch_size_setting(trainer.stage)
                smaller = size // 2 // processes * processes
                remedy = f"It was with {name}={size}: "
                remedy += f"try {name}={smaller} in a new output_dir." if smaller else "only a smaller model would fit."
            raise RunError(f"Out of memory. {remedy} {error}") from error
        if disk_full(error):
            raise RunError(f"{run.path} cannot be written: {error}. Free some space, then {again}.") from error
        if processes > 1 and lost_process(error):
            raise RunError(
                f"The processes of this run lost each other. If another one ended, its own output says why. When that "
                f"is fixed, {again}. {error}"
            ) from error
        raise
