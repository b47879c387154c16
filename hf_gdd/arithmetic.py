"""What a run computes in: the precision and the layout that are fastest on its machine, timed once and kept."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger("hf_gdd")

PRECISIONS = ("no", "bf16")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Under so many channels all ways are equally fast, and a choice would only make equal runs round differently.
FEWEST_CHANNELS = 64
_IMAGES, _SIDE, _REPEATS = 16, 16, 3


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
        self.open = PRECISIONS if mixed_precision == "auto" else (mixed_precision,)
        self.channels, self.device = channels, device
        self.precision, self.layout = self.open[0], LAYOUTS[0]

    def choose(self, agreed: Callable[[Tensor], Tensor]) -> None:
        """Time a convolution in every way that is open, and take the fastest.

        Args:
            agreed: the mean over processes, so that all choose alike.

        """
        layouts = LAYOUTS if self.channels >= FEWEST_CHANNELS else LAYOUTS[:1]
        ways = [(precision, layout) for precision in self.open for layout in layouts]
        if len(ways) == 1:
            return
        seconds = agreed(torch.tensor([self._seconds(*way) for way in ways], device=self.device)).tolist()
        self.precision, self.layout = ways[seconds.index(min(seconds))]
        told = ", ".join(f"{self._name(*way)} {1e3 * took:.1f} ms" for way, took in zip(ways, seconds, strict=True))
        logger.info("Computing in %s; a convolution took: %s.", self._name(self.precision, self.layout), told)

    def lay_out(self, module: nn.Module) -> nn.Module:
        """The module, its weights in the layout of the run."""
        return module.to(memory_format=self.layout)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass, in the run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _seconds(self, precision: str, layout: torch.memory_format) -> float:
        """The least time of a convolution, forward and backward."""
        channels = max(self.channels, FEWEST_CHANNELS)
        shapes = ((_IMAGES, channels, _SIDE, _SIDE), (channels, channels, 3, 3))
        images, weight = (torch.ones(shape, device=self.device).to(memory_format=layout) for shape in shapes)
        images, weight = images.requires_grad_(), weight.requires_grad_()
        times = []
        for _ in range(1 + _REPEATS):  # the first one also finds the algorithm
            self._wait()
            started = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                made = F.conv2d(images, weight, padding=1)
            torch.autograd.grad(made.float().sum(), (images, weight))
            self._wait()
            times.append(time.perf_counter() - started)
        return min(times[1:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _name(self, precision: str, layout: torch.memory_format) -> str:
        return ("fp32" if precision == "no" else precision) + (", channels last" if layout == LAYOUTS[1] else "")

    def state_dict(self) -> dict[str, Any]:
        """What was chosen."""
        return {"precision": self.precision, "channels_last": self.layout == LAYOUTS[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in what was chosen."""
        self.precision, self.layout = state["precision"], LAYOUTS[state["channels_last"]]
