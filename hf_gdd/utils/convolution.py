"""Convolutions whose weight gradient is a matrix product: on some CPUs faster than the kernel that torch has for it.

The inner product <x * w, y> of a convolution of x by w with any y has three gradients: by y the convolution itself, by
x the transposed one, by w the weight gradient. Each takes two of x, w and y, and its own gradients are the other two
again. So one function with one rule serves every order of differentiation, as a gradient penalty asks for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_Pair = int | tuple[int, ...]
_CHUNK = 2**24  # bytes of patches that are laid out at a time, but for one image at least
_of_weights = ContextVar("of_weights", default=True)


@contextmanager
def of_images_alone() -> Iterator[None]:
    """Within, gradients reach no weight of these convolutions: for `torch.autograd.grad` with respect to images.

    It does not tell a function written in Python which gradients are wanted. Call no `backward` in here.
    """
    token = _of_weights.set(False)
    try:
        yield
    finally:
        _of_weights.reset(token)


class WeightProducts(TorchFunctionMode):
    """A context in which convolutions that are to be trained take their weight gradients by matrix products.

    Values and gradients are torch's own but for rounding. Convolutions under `torch.func` are not supported.

    Args:
        fewest: channels, in and out, of those that are taken; others stay as they are, as do grouped and dilated ones.

    """

    def __init__(self, fewest: int) -> None:
        super().__init__()
        self.fewest = fewest

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Tensor:
        if func is torch.conv2d:
            return self._convolution(*args, **kwargs or {})
        if func is torch.conv_transpose2d:
            return self._transposed(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Pair = 1,
        padding: _Pair | str = 0,
        dilation: _Pair = 1,
        groups: int = 1,
    ) -> Tensor:
        if not self._takes(input, weight, padding, dilation, groups):
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        geometry = _Geometry(input.shape[2:], weight.shape[2:], _pair(stride), _pair(padding))
        made = _Third.apply(geometry, input, weight, None)
        return made if bias is None else made.add_(bias[:, None, None])

    def _transposed(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Pair = 1,
        padding: _Pair = 0,
        output_padding: _Pair = 0,
        groups: int = 1,
        dilation: _Pair = 1,
    ) -> Tensor:
        if not self._takes(input, weight, padding, dilation, groups):
            return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
        stride, padding, kernel = _pair(stride), _pair(padding), weight.shape[2:]
        size = _transposed_size(input.shape[2:], kernel, stride, padding, _pair(output_padding))
        made = _Third.apply(_Geometry(size, kernel, stride, padding), None, weight, input)
        return made if bias is None else made.add_(bias[:, None, None])

    def _takes(self, input: Tensor, weight: Tensor, padding: _Pair | str, dilation: _Pair, groups: int) -> bool:
        trained = torch.is_grad_enabled() and weight.requires_grad
        alike = input.dtype == weight.dtype and weight.is_floating_point() and not torch.is_autocast_enabled("cpu")
        common = input.ndim == 4 and groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str)
        return trained and alike and common and min(weight.shape[:2]) >= self.fewest


def _pair(sides: _Pair) -> tuple[int, int]:
    """Of height and width."""
    sides = (sides,) if isinstance(sides, int) else tuple(sides)
    return sides * 2 if len(sides) == 1 else sides


def _transposed_size(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int] = (0, 0),
) -> tuple[int, int]:
    """Height and width of what a transposed convolution makes of `size`."""
    ends = zip(size, kernel, stride, padding, output_padding, strict=True)
    return tuple((side - 1) * step - 2 * edge + taps + more for side, taps, step, edge, more in ends)


@dataclass(frozen=True)
class _Geometry:
    """Size of x, size of the kernel, stride and padding of a convolution y = x * w, each (height, width)."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def third(self, x: Tensor | None, w: Tensor | None, y: Tensor | None) -> Tensor:
        """The gradient of <x * w, y> by whichever of the three is None."""
        if y is None:
            return torch.conv2d(x, w, None, self.stride, self.padding)
        if x is None:
            least = _transposed_size(y.shape[2:], self.kernel, self.stride, self.padding)
            more = tuple(size - side for size, side in zip(self.size, least, strict=True))
            return torch.conv_transpose2d(y, w, None, self.stride, self.padding, more)
        return self._weight_gradient(x, y)

    def _weight_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum over images and places of (patch of x) times (pixel of y), some images at a time."""
        x, y = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)  # rows of channels, without a copy if channels come last
        (high, wide), (above, beside) = self.kernel, self.padding
        patch, places = x.shape[3] * high * wide, y.shape[1] * y.shape[2]
        images = max(1, _CHUNK // (patch * places * y.element_size()))
        total = x.new_zeros(y.shape[3], patch)
        for some_x, some_y in zip(x.split(images), y.split(images), strict=True):
            padded = F.pad(some_x, (0, 0, beside, beside, above, above))
            patches = padded.unfold(1, high, self.stride[0]).unfold(2, wide, self.stride[1])
            patches = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, patch)
            total = total.addmm(some_y.reshape(-1, y.shape[3]).T, patches)
        return total.view(y.shape[3], high, wide, x.shape[3]).permute(0, 3, 1, 2)


class _Third(torch.autograd.Function):
    """Whichever of x, w and y is None, from the other two; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, geometry: _Geometry, *parts: Tensor | None) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(*parts)
        return geometry.third(*parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given, wanted = ctx.saved_tensors, list(ctx.needs_input_grad[1:])
        if wanted[1] and given[1].is_leaf:
            wanted[1] = _of_weights.get()
        whole = [gradient if part is None else part for part in given]
        return None, *(
            _Third.apply(ctx.geometry, *whole[:i], None, *whole[i + 1 :]) if wanted[i] else None for i in range(3)
        )
