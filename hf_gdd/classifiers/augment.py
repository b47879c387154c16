"""Differentiable augmentation, batched on the device.

Every operation is a pure function `op(x, u)` of images x, float [B, C, H, W] in the normalized range, and
uniform numbers u in [0, 1), float32 [n, k], where n is B (a row an image) or 1 (a row for all). Two calls
with the same u are siamese augmentation: real and synthetic images share every draw.

Source: DSA (Zhao & Bilen, 2021, arXiv 2102.08259).
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

_CROP_SHARE = 0.125
_CUTOUT_SHARE = 0.5
_SCALE_LIMIT = 1.2
_ROTATE_LIMIT = math.radians(15)


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror an image left to right where its u [n, 1] is below one half."""
    return torch.where(u.view(-1, 1, 1, 1) < 0.5, x.flip(-1), x)


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Shift an image by -0.5 to 0.5 normalized units, by u [n, 1]."""
    return x + (_per_image(u, x) - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Scale each pixel's distance from its channel mean by 0 to 2, by u [n, 1]; nothing for one channel."""
    mean = x.mean(1, keepdim=True)
    return mean + (x - mean) * (2 * _per_image(u, x))


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Scale an image's distance from its own mean over C, H and W by 0.5 to 1.5, by u [n, 1]."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (_per_image(u, x) + 0.5)


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Move an image by whole pixels, up to an eighth of each side, by u [n, 2]; zeros move in."""
    rows, rows_inside = _moved(x.shape[2], u[:, 0])
    columns, columns_inside = _moved(x.shape[3], u[:, 1])
    source = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).flatten(1)
    inside = rows_inside[:, None, :, None] & columns_inside[:, None, None, :]
    # One shared draw has n = 1: the whole batch then folds into the channels, and no index is repeated.
    folded = x.reshape(len(u), -1, x.shape[2] * x.shape[3])
    moved = folded.gather(2, source[:, None].expand_as(folded)).view(x.shape)
    return moved.masked_fill(~inside, 0)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Resample an image on a grid 1/1.2 to 1.2 times as wide and, apart, as high, by u [n, 2]."""
    factors = 1 / _SCALE_LIMIT + u * (_SCALE_LIMIT - 1 / _SCALE_LIMIT)
    return _resample(x, torch.diag_embed(factors))


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """Turn an image by -15 to 15 degrees about its center, by u [n, 1]."""
    angle = (2 * u[:, 0] - 1) * _ROTATE_LIMIT
    sine, cosine = angle.sin(), angle.cos()
    # Both axes of the grid run from -1 to 1: without the ratio of the sides an oblong image would shear.
    ratio = x.shape[2] / x.shape[3]
    return _resample(x, torch.stack([cosine, -sine * ratio, sine / ratio, cosine], dim=1).view(-1, 2, 2))


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Blank a box of half the sides of an image, centered by u [n, 2] and clipped at the border."""
    rows = _boxed(x.shape[2], u[:, 0])
    columns = _boxed(x.shape[3], u[:, 1])
    return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


def cutmix(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Paste one box of each image into another image of the batch, with a uniform share of its area (Yun et al., 2019).

    Args:
        x: images [B, C, H, W].
        generator: on their device.

    Returns:
        Mixed images, which image [B] each box is from, and the share of its own pixels that each image keeps.

    """
    order = torch.randperm(len(x), generator=generator, device=x.device)
    u = torch.rand(3, generator=generator, device=x.device)
    rows, columns = (_within_box(side, u[i], (1 - u[2]).sqrt()) for i, side in enumerate(x.shape[2:]))
    box = rows[:, None] & columns[None, :]
    return torch.where(box, x[order], x), order, 1 - box.float().mean()


def _within_box(side: int, center: Tensor, share: Tensor) -> Tensor:
    """Which positions along one side lie in a box of this share of it, clipped at the border."""
    middle, half = (center * side).long(), (share * side).long() // 2
    positions = torch.arange(side, device=center.device)
    return (positions >= middle - half) & (positions < middle + half)


def _per_image(u: Tensor, x: Tensor) -> Tensor:
    return u.to(x.dtype).view(-1, 1, 1, 1)


def _moved(side: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return source positions along one side [n, side], and which of them lie in the image."""
    limit = round(_CROP_SHARE * side)
    shift = (u * (2 * limit + 1)).long() - limit
    source = torch.arange(side, device=u.device) + shift[:, None]
    # Wrapped rather than clamped: no two outputs read one input, so the backward pass is deterministic.
    return source % side, (source >= 0) & (source < side)


def _boxed(side: int, u: Tensor) -> Tensor:
    """Return which positions along one side fall in the box, [n, side]."""
    length = int(_CUTOUT_SHARE * side)
    # An even box is centered between pixels: one more place than an odd one, so that both borders are alike.
    start = (u * (side + 1 - length % 2)).long() - length // 2
    offset = torch.arange(side, device=u.device) - start[:, None]
    return (offset >= 0) & (offset < length)


def _resample(x: Tensor, matrix: Tensor) -> Tensor:
    """Sample x at the grid transformed by matrix [n, 2, 2]; zeros outside the image."""
    n, (height, width) = len(matrix), x.shape[2:]
    theta = F.pad(matrix.to(x.dtype), (0, 1))
    folded = x.reshape(n, -1, height, width)  # as in crop: a shared draw folds the batch into the channels
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)
    return F.grid_sample(folded, grid, align_corners=False).view(x.shape)


# Fixed columns: policies that differ in some operations read equal numbers for those they have in common.
_OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], slice]] = {
    "flip": (flip, slice(0, 1)),
    "brightness": (brightness, slice(1, 2)),
    "saturation": (saturation, slice(2, 3)),
    "contrast": (contrast, slice(3, 4)),
    "crop": (crop, slice(4, 6)),
    "scale": (scale, slice(6, 8)),
    "rotate": (rotate, slice(8, 9)),
    "cutout": (cutout, slice(9, 11)),
}
_CHOICE = 11
_COLOR = ("brightness", "saturation", "contrast")
_GEOMETRIC = ("crop", "scale", "rotate")
_ACCEPTED = ("flip", "color", *_GEOMETRIC, "cutout")


@dataclass(frozen=True)
class Augment:
    """A policy such as "color_crop_cutout"; "" leaves images as they are.

    In this order, each only if listed: flip; brightness, saturation and contrast for "color"; one of crop,
    scale and rotate, the same one for the whole call; cutout. Source: the composition of
    the public DiM code (Gu et al., 2023).

    Attributes:
        policy: the operations.
        single: apply only one of those listed, `color` counting as one, the same one for the whole call, as the public
            DSA code does (there the corners of scale and rotate are aligned; here, as in DiM, they are not).

    Raises:
        ValueError: the policy names an unknown operation.
    """

    policy: str
    single: bool = False
    of_unit: ClassVar[bool] = False  # it takes normalized images

    def __post_init__(self) -> None:
        _require_known(self._listed())

    def draw(self, n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Draw every number one call needs: uniforms in [0, 1), float32 [n, 12], on `device`.

        Args:
            n: 1 to share the draw between all images, or their number for a draw each.
            generator: lives on `device`; without one, that device's global generator is used.
            device: where the images are.
        """
        uniforms = torch.rand(n, _CHOICE + 1, generator=generator, device=device)
        uniforms[:, _CHOICE] = uniforms[0, _CHOICE].clone()
        return uniforms

    def __call__(self, x: Tensor, draw: Tensor) -> Tensor:
        """Augment normalized float images [B, C, H, W] by a draw of 1 or B rows; differentiable in x.

        Raises:
            ValueError: the draw has neither 1 nor B rows.
        """
        if len(draw) not in (1, len(x)):
            raise ValueError(f"a draw needs 1 or {len(x)} rows for {len(x)} images, got {len(draw)}.")
        listed = self._listed()
        if self.single:
            return _apply_one(listed, x, draw)
        if "flip" in listed:
            x = _apply("flip", x, draw)
        if "color" in listed:
            x = _apply("color", x, draw)
        x = _apply_one([name for name in _GEOMETRIC if name in listed], x, draw)
        if "cutout" in listed:
            x = _apply("cutout", x, draw)
        return x

    def _listed(self) -> list[str]:
        return self.policy.split("_") if self.policy else []


def _require_known(names: Iterable[str]) -> None:
    for name in names:
        if name not in _ACCEPTED:
            raise ValueError(f"unknown augmentation {name!r}; accepted: {', '.join(_ACCEPTED)}.")


def _apply(name: str, x: Tensor, draw: Tensor) -> Tensor:
    if name == "color":
        for part in _COLOR:
            x = _apply(part, x, draw)
        return x
    operation, columns = _OPERATIONS[name]
    return operation(x, draw[:, columns])


def _apply_one(names: list[str], x: Tensor, draw: Tensor) -> Tensor:
    """Apply the drawn one of the named operations."""
    if not names:
        return x
    choice = (draw[:, _CHOICE] * len(names)).long()
    if x.device.type == "cpu" and (choice == choice[0]).all():
        return _apply(names[int(choice[0])], x, draw)
    # All are computed and one is kept: reading the choice on the host would stall the device on every step, and
    # several batches in one, as networks trained in step are given them, each have a choice of their own.
    result = _apply(names[0], x, draw)
    for index, name in enumerate(names[1:], start=1):
        result = torch.where((choice == index).view(-1, 1, 1, 1), _apply(name, x, draw), result)
    return result


_LEAST_AREA, _MOST_OBLONG, _JITTER, _LIGHTING = 0.5, 4 / 3, 0.4, 0.1


_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601


# Deviations and directions of the colors of ImageNet's pixels in unit range (Krizhevsky et al., 2012).
_COLOR_VALUES = (0.2175, 0.0188, 0.0045)


_COLOR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


_ORDERS = tuple(itertools.permutations(range(3)))


class ImageNetAugment:
    """What the public Minimax code trains classifiers with, for whole batches, every image with draws of its own.

    A crop of half to all of the area, 3:4 to 4:3, resized; a mirror image half the time; brightness, contrast and
    saturation by factors of 0.6 to 1.4, in random order; a shift along the colors' principal axes. Images of one
    channel keep saturation and colors.
    """

    of_unit: ClassVar[bool] = True  # it takes images in [0, 1], before they are normalized

    def draw(self, n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Uniforms in [0, 1), float32 [n, 12], on `device`."""
        return torch.rand(n, 12, generator=generator, device=device)

    def __call__(self, x: Tensor, draw: Tensor) -> Tensor:
        """Augment unit-range images [B, C, H, W] by a draw of B rows."""
        return self._lit(self._jittered(self._cropped(x, draw[:, :5]), draw[:, 5:9]), draw[:, 9:])

    def _cropped(self, x: Tensor, u: Tensor) -> Tensor:
        area = _LEAST_AREA + (1 - _LEAST_AREA) * u[:, 0]
        oblong = ((2 * u[:, 1] - 1) * math.log(_MOST_OBLONG)).exp()
        width, height = (area * oblong).sqrt().clamp(max=1), (area / oblong).sqrt().clamp(max=1)
        mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
        zero = torch.zeros_like(width)
        across = torch.stack([mirror * width, zero, (1 - width) * (2 * u[:, 2] - 1)], dim=1)
        down = torch.stack([zero, height, (1 - height) * (2 * u[:, 3] - 1)], dim=1)
        grid = F.affine_grid(torch.stack([across, down], dim=1).to(x.dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _jittered(self, x: Tensor, u: Tensor) -> Tensor:
        factors = (1 + _JITTER * (2 * u[:, :3] - 1)).to(x.dtype).view(-1, 3, 1, 1, 1)
        orders = _table(_ORDERS, x.device)[(u[:, 3] * len(_ORDERS)).long()]
        for turn in range(3):
            gray = self._grey(x)
            towards = (torch.zeros_like(x), gray.mean((2, 3), keepdim=True).expand_as(x), gray.expand_as(x))
            made = [to + factors[:, i] * (x - to) for i, to in enumerate(towards)]
            which = orders[:, turn].view(-1, 1, 1, 1)
            x = torch.where(which == 0, made[0], torch.where(which == 1, made[1], made[2]))
        return x

    def _grey(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return x.mean(1, keepdim=True)
        return (x * _table(_GRAY, x.device).view(3, 1, 1)).sum(1, keepdim=True)

    def _lit(self, x: Tensor, u: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return x
        amounts = _LIGHTING * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)) * _table(_COLOR_VALUES, u.device)
        return x + (amounts @ _table(_COLOR_VECTORS, u.device).T).to(x.dtype)[:, :, None, None]


@cache
def _table(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Made once: each copy to a GPU would wait for it."""
    return torch.tensor(values, device=device)
