"""How networks are computed: precision, layout, weight gradients, and memory itself, as is fastest on the machine."""

import ctypes
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gdd.utils.convolution import WeightProducts, of_images_alone

logger = logging.getLogger("hf_gdd")

PRECISIONS = ("no", "bf16")
# Under so many channels all ways are equally fast, and a choice would only make equal runs round differently.
FEWEST_CHANNELS, _MOST_TIMED = 64, 256
_WORTH = 0.97  # of a plainer way's time: what another must stay under, for a trial's times are not exact
_IMAGES, _SIDE, _ROUNDS = 16, 16, 16
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


class Way(NamedTuple):
    """One way to compute a network: but for the precision, ways differ in rounding alone."""

    precision: str  # `no` or `bf16`, of forward passes
    layout: torch.memory_format = torch.contiguous_format  # of weights in memory
    products: bool = False  # whether weight gradients of convolutions are matrix products

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """The context of a forward pass."""
        products = WeightProducts(FEWEST_CHANNELS) if self.products else nullcontext()
        with autocast(device, self.precision), products:
            yield

    def __str__(self) -> str:
        parts = ["fp32" if self.precision == "no" else self.precision]
        parts += ["channels last"] if self.layout == torch.channels_last else []
        return ", ".join(parts + ["weight gradients as matrix products"] * self.products)


class Arithmetic:
    """The way in which a run is computed. It is in its checkpoints, so that one that is resumed goes on in the same.

    Args:
        mixed_precision: `no`, `bf16`, or `auto` for the faster of the two.
        channels: of the convolutions that most of a step goes into; 0 if layout does not matter.
        device: where they are computed.

    Attributes:
        way: the plain one, until another is chosen.

    """

    def __init__(self, mixed_precision: str, channels: int, device: torch.device) -> None:
        self.channels, self.device = channels, device
        precisions = PRECISIONS if mixed_precision == "auto" else (mixed_precision,)
        self._ways = [Way(precision) for precision in precisions]
        if channels >= FEWEST_CHANNELS:
            self._ways += [Way(precision, torch.channels_last) for precision in precisions]
            if device.type == "cpu" and "no" in precisions:
                self._ways.append(Way("no", torch.channels_last, products=True))
        self.way = self._ways[0]

    def choose(self, agreed: Callable[[Tensor], Tensor]) -> None:
        """Time a convolution in every way that is open, and take the fastest.

        Args:
            agreed: the mean over processes, so that all choose alike.

        """
        if len(self._ways) == 1:
            return
        times = agreed(torch.tensor(self._times(), device=self.device)).tolist()
        best = 0
        for i, took in enumerate(times):
            best = i if took < _WORTH * times[best] else best
        self.way = self._ways[best]
        told = "; ".join(f"{way} {1e3 * took:.1f} ms" for way, took in zip(self._ways, times, strict=True))
        logger.info("Computing in %s. A convolution took: %s.", self.way, told)

    def computing(self) -> AbstractContextManager:
        """The context of a forward pass, in the way of the run."""
        return self.way.computing(self.device)

    def _times(self) -> list[float]:
        """The least time in each way of a convolution and of the gradients that a penalty takes, the ways by turns."""
        calls = [self._convolution(way) for way in self._ways]
        times = [seconds(call, self.device) for call in calls]  # the first time also finds the algorithm
        times = [seconds(call, self.device) for call in calls]
        for _ in range(_ROUNDS):
            for i, call in enumerate(calls):
                if times[i] < 2 * min(times):  # a way that is far slower need not be timed again
                    times[i] = min(times[i], seconds(call, self.device))
        return times

    def _convolution(self, way: Way) -> Callable[[], Any]:
        channels = min(max(self.channels, FEWEST_CHANNELS), _MOST_TIMED)
        shapes = ((_IMAGES, channels, _SIDE, _SIDE), (channels, channels, 3, 3))
        images, weight = (torch.ones(shape, device=self.device).to(memory_format=way.layout) for shape in shapes)
        bias = torch.ones(channels, device=self.device)
        given = images.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()

        def call() -> Any:
            with way.computing(self.device):
                made = F.conv2d(*given, padding=1)
            with of_images_alone():
                (slope,) = torch.autograd.grad(made.float().square().sum(), images, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), given)

        return call

    def state_dict(self) -> dict[str, Any]:
        """What was chosen."""
        precision, layout, products = self.way
        return {"precision": precision, "channels_last": layout == torch.channels_last, "products": products}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in what was chosen, as far as this device knows it."""
        layout = torch.channels_last if state["channels_last"] else torch.contiguous_format
        self.way = Way(state["precision"], layout, state.get("products", False) and self.device.type == "cpu")
