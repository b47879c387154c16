"""What networks are computed in: precision, layout in memory, and memory itself, as is fastest on the machine."""

import ctypes
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger("hf_gdd")

PRECISIONS = ("no", "bf16")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Under so many channels all ways are equally fast, and a choice would only make equal runs round differently.
FEWEST_CHANNELS, _MOST_TIMED = 64, 256
_WORTH = 0.95  # of the plain way's time: what another must stay under, for a trial's times are not exact
_IMAGES, _SIDE, _ROUNDS = 16, 16, 8
_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD, _MALLOC_MOST = -1, -3, 2**31 - 1  # of glibc's malloc.h


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in `no` or `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call; a GPU is waited for before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees for what it needs next; whether its C library can (glibc).

    By default large tensors are returned to the system, which has to clear every page of them when the next step asks
    for as much again: on CPUs that was a third to a half of a training step's time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, _MALLOC_MOST) for option in (_MALLOC_MMAP_THRESHOLD, _MALLOC_TRIM_THRESHOLD))


class Arithmetic:
    """Precision and layout of a run. They are in its checkpoints, so that one that is resumed goes on in the same.

    Args:
        mixed_precision: `no`, `bf16`, or `auto` for the faster of the two.
        channels: of the convolutions that most of a step goes into; 0 if layout does not matter.
        device: where they are computed.

    Attributes:
        precision: `no` or `bf16`, of forward passes.
        layout: of weights in memory; it changes nothing but rounding.

    """

    def __init__(self, mixed_precision: str, channels: int, device: torch.device) -> None:
        self.channels, self.device = channels, device
        precisions = PRECISIONS if mixed_precision == "auto" else (mixed_precision,)
        layouts = LAYOUTS if channels >= FEWEST_CHANNELS else LAYOUTS[:1]
        self._ways = [(precision, layout) for precision in precisions for layout in layouts]
        self.precision, self.layout = self._ways[0]

    def choose(self, agreed: Callable[[Tensor], Tensor]) -> None:
        """Time a convolution in every way that is open, and take the fastest.

        Args:
            agreed: the mean over processes, so that all choose alike.

        """
        if len(self._ways) == 1:
            return
        times = agreed(torch.tensor(self._times(), device=self.device)).tolist()
        best = times.index(min(times))
        self.precision, self.layout = self._ways[best if times[best] < _WORTH * times[0] else 0]
        told = ", ".join(f"{self._name(*way)} {1e3 * took:.1f} ms" for way, took in zip(self._ways, times, strict=True))
        logger.info("Computing in %s; a convolution took: %s.", self._name(self.precision, self.layout), told)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass, in the run's precision."""
        return autocast(self.device, self.precision)

    def _times(self) -> list[float]:
        """The least time in each way of a convolution, forward and backward, the ways by turns."""
        calls = [self._convolution(*way) for way in self._ways]
        times = [seconds(call, self.device) for call in calls]  # the first time also finds the algorithm
        times = [seconds(call, self.device) for call in calls]
        for _ in range(_ROUNDS):
            for i, call in enumerate(calls):
                if times[i] < 2 * min(times):  # a way that is far slower need not be timed again
                    times[i] = min(times[i], seconds(call, self.device))
        return times

    def _convolution(self, precision: str, layout: torch.memory_format) -> Callable[[], Any]:
        channels = min(max(self.channels, FEWEST_CHANNELS), _MOST_TIMED)
        shapes = ((_IMAGES, channels, _SIDE, _SIDE), (channels, channels, 3, 3))
        images, weight = (torch.ones(shape, device=self.device).to(memory_format=layout) for shape in shapes)
        given = images.requires_grad_(), weight.requires_grad_()

        def call() -> Any:
            with autocast(self.device, precision):
                made = F.conv2d(*given, padding=1)
            return torch.autograd.grad(made.float().sum(), given)

        return call

    def _name(self, precision: str, layout: torch.memory_format) -> str:
        return ("fp32" if precision == "no" else precision) + (", channels last" if layout == LAYOUTS[1] else "")

    def state_dict(self) -> dict[str, Any]:
        """What was chosen."""
        return {"precision": self.precision, "channels_last": self.layout == LAYOUTS[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in what was chosen."""
        self.precision, self.layout = state["precision"], LAYOUTS[state["channels_last"]]
