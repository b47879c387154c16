"""Convolutions whose weight gradient is a matrix product: on some CPUs faster than the kernel that torch has for it.

The inner product <x * w, y> of a convolution of x by w with any y has three gradients: by y the convolution itself, by
x the transposed one, by w the weight gradient. Each takes two of x, w and y, and its own gradients are the other two
again. So one function with one rule serves every order of differentiation, as a gradient penalty asks for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_Sides = int | tuple[int, int]
_CHUNK = 2**24  # bytes of patches that are laid out at a time: no more than stay near the cores
_asked = {"weights": True}


@contextmanager
def of_images_alone() -> Iterator[None]:
    """Within, no weight gradient of these convolutions is computed: for gradients that are asked by images alone.

    `torch.autograd.grad` does not tell a function written in Python which of its gradients are wanted.
    """
    _asked["weights"] = False
    try:
        yield
    finally:
        _asked["weights"] = True


class WeightProducts(TorchFunctionMode):
    """A context in which convolutions that are to be trained take their weight gradients by matrix products.

    Values and gradients are torch's own but for rounding.

    Args:
        fewest: channels, in and out, of those that are taken; others stay as they are.

    """

    def __init__(self, fewest: int) -> None:
        super().__init__()
        self.fewest = fewest

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Tensor:
        ours = {torch.conv2d: self._convolution, torch.conv_transpose2d: self._transposed}.get(func)
        return (ours or func)(*args, **kwargs or {})

    def _convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Sides = 1,
        padding: _Sides = 0,
        dilation: _Sides = 1,
        groups: int = 1,
    ) -> Tensor:
        if not self._takes(weight, padding, dilation, groups):
            return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
        shape = _Shape(x.shape[2:], weight.shape[2:], _pair(stride), _pair(padding))
        made = _Third.apply(shape, x, weight, None)
        return made if bias is None else made.add_(bias[:, None, None])

    def _transposed(
        self,
        y: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Sides = 1,
        padding: _Sides = 0,
        output_padding: _Sides = 0,
        groups: int = 1,
        dilation: _Sides = 1,
    ) -> Tensor:
        if not self._takes(weight, padding, dilation, groups):
            return torch.conv_transpose2d(y, weight, bias, stride, padding, output_padding, groups, dilation)
        stride, padding = _pair(stride), _pair(padding)
        size = _reached(y.shape[2:], weight.shape[2:], stride, padding, _pair(output_padding))
        made = _Third.apply(_Shape(size, weight.shape[2:], stride, padding), None, weight, y)
        return made if bias is None else made.add_(bias[:, None, None])

    def _takes(self, weight: Tensor, padding: _Sides | str, dilation: _Sides, groups: int) -> bool:
        trained = torch.is_grad_enabled() and weight.requires_grad
        common = groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str)
        return trained and common and min(weight.shape[:2]) >= self.fewest


def _pair(sides: _Sides) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


def _reached(
    y: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    more: tuple[int, int] = (0, 0),
) -> tuple[int, int]:
    """The size of x that a transposed convolution of `y` makes."""
    ends = zip(y, taps, stride, padding, more, strict=True)
    return tuple((side - 1) * step - 2 * edge + wide + rest for side, wide, step, edge, rest in ends)


@dataclass(frozen=True)
class _Shape:
    """What a convolution is besides its images and weights, each as (height, width)."""

    size: tuple[int, int]  # of x
    taps: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def third(self, x: Tensor | None, w: Tensor | None, y: Tensor | None) -> Tensor:
        """Whichever of the three is not given."""
        if y is None:
            return torch.conv2d(x, w, None, self.stride, self.padding)
        if x is None:
            least = _reached(y.shape[2:], self.taps, self.stride, self.padding)
            more = tuple(size - side for size, side in zip(self.size, least, strict=True))
            return torch.conv_transpose2d(y, w, None, self.stride, self.padding, more)
        return self._weights(x, y)

    def _weights(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum over images and places of (patch of x) times (pixel of y), some images at a time."""
        x, y = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)  # as they lie in memory, channels last
        patch, (above, beside) = x.shape[3] * self.taps[0] * self.taps[1], self.padding
        images = max(1, _CHUNK // (patch * y.shape[1] * y.shape[2] * y.element_size()))
        total = x.new_zeros(y.shape[3], patch)
        for some_x, some_y in zip(x.split(images), y.split(images), strict=True):
            padded = F.pad(some_x, (0, 0, beside, beside, above, above))
            patches = padded.unfold(1, self.taps[0], self.stride[0]).unfold(2, self.taps[1], self.stride[1])
            patches = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, patch)
            total = total.addmm(some_y.reshape(-1, y.shape[3]).T, patches)
        return total.view(y.shape[3], *self.taps, x.shape[3]).permute(0, 3, 1, 2)


class _Third(torch.autograd.Function):
    """Of x, w and y, of which one is None, that one."""

    @staticmethod
    def forward(ctx: Any, shape: _Shape, *parts: Tensor | None) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(*parts)
        return shape.third(*parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given, wanted = ctx.saved_tensors, list(ctx.needs_input_grad[1:])
        wanted[1] &= _asked["weights"]
        whole = [gradient if part is None else part for part in given]
        return None, *(
            _Third.apply(ctx.shape, *whole[:i], None, *whole[i + 1 :]) if wanted[i] and part is not None else None
            for i, part in enumerate(given)
        )
