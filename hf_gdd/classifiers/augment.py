"""Differentiable siamese augmentation in batches (DSA; Zhao & Bilen, 2021).

Every operation is a pure function `op(x, u)` of normalized images x, float [B, C, H, W], and uniform numbers u in
[0, 1), float32 [n, k]. n is B for one row per image, or 1 for one row that all share. Two calls with equal u augment
alike: this is how real and synthetic images share every draw. The paper is arXiv 2102.08259.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

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
    """Scale each pixel's distance from its mean over channels by 0 to 2, by u [n, 1].

    Images of one channel stay as they are.
    """
    mean = x.mean(1, keepdim=True)
    return mean + (x - mean) * (2 * _per_image(u, x))


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Scale an image's distance from its mean by 0.5 to 1.5, by u [n, 1]."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (_per_image(u, x) + 0.5)


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift an image by whole pixels, up to an eighth of each side, by u [n, 2].

    Zeros fill the border.
    """
    rows, rows_inside = _shifted(x.shape[2], u[:, 0])
    columns, columns_inside = _shifted(x.shape[3], u[:, 1])
    source = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).flatten(1)
    inside = rows_inside[:, None, :, None] & columns_inside[:, None, None, :]
    # A shared draw has n = 1: the whole batch then folds into the channels, and no index is repeated.
    folded = x.reshape(len(u), -1, x.shape[2] * x.shape[3])
    shifted = folded.gather(2, source[:, None].expand_as(folded)).view(x.shape)
    return shifted.masked_fill(~inside, 0)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Resample each side on a grid scaled by its own 1/1.2 to 1.2, by u [n, 2]."""
    factors = 1 / _SCALE_LIMIT + u * (_SCALE_LIMIT - 1 / _SCALE_LIMIT)
    return _resample(x, torch.diag_embed(factors))


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """Rotate an image by -15 to 15 degrees about its center, by u [n, 1]."""
    angle = (2 * u[:, 0] - 1) * _ROTATE_LIMIT
    sine, cosine = angle.sin(), angle.cos()
    # Both axes of the grid run from -1 to 1; without the ratio of the sides an oblong image would shear.
    ratio = x.shape[2] / x.shape[3]
    return _resample(x, torch.stack([cosine, -sine * ratio, sine / ratio, cosine], dim=1).view(-1, 2, 2))


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Set a box of half the side lengths to zero, centered by u [n, 2].

    The box is clipped at the border.
    """
    rows = _inside_box(x.shape[2], u[:, 0])
    columns = _inside_box(x.shape[3], u[:, 1])
    return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


def cutmix(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Paste one box of each image into another image of the batch (Yun et al., 2019).

    All images share the box, whose share of the area is uniform before it is clipped at the border.

    Args:
        x: images [B, C, H, W].
        rng: on their device.

    Returns:
        The mixed images, the row int64 [B] that each box comes from, and the share of its own pixels that an image
        retains.

    """
    order = torch.randperm(len(x), generator=rng, device=x.device)
    u = torch.rand(3, generator=rng, device=x.device)
    rows, columns = (_inside_span(side, u[i], (1 - u[2]).sqrt()) for i, side in enumerate(x.shape[2:]))
    box = rows[:, None] & columns[None, :]
    return torch.where(box, x[order], x), order, 1 - box.float().mean()


def _inside_span(side: int, center: Tensor, share: Tensor) -> Tensor:
    """Return a mask [side] of a span of this center and share, clipped at the border."""
    half = (share * side).long() // 2
    return _mask(side, (center * side).long() - half, 2 * half)


def _mask(side: int, start: Tensor, length: int | Tensor) -> Tensor:
    """Return a mask [..., side] of `length` positions from `start` [...] on."""
    offset = torch.arange(side, device=start.device) - start[..., None]
    return (offset >= 0) & (offset < length)


def _per_image(u: Tensor, x: Tensor) -> Tensor:
    return u.to(x.dtype).view(-1, 1, 1, 1)


def _shifted(side: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return source positions along one side [n, side] and a mask of valid ones."""
    limit = round(_CROP_SHARE * side)
    shift = (u * (2 * limit + 1)).long() - limit
    source = torch.arange(side, device=u.device) + shift[:, None]
    # Wrapped rather than clamped: no two outputs read the same input, so the backward pass is deterministic.
    return source % side, (source >= 0) & (source < side)


def _inside_box(side: int, u: Tensor) -> Tensor:
    """Return a mask [n, side] of the positions along one side that fall in the box."""
    length = int(_CUTOUT_SHARE * side)
    # An even box is centered between pixels. It has one more place than an odd one, so that both borders are alike.
    return _mask(side, (u * (side + 1 - length % 2)).long() - length // 2, length)


def _resample(x: Tensor, matrix: Tensor) -> Tensor:
    """Sample x on the grid transformed by matrix [n, 2, 2]; zeros outside the image."""
    n, (height, width) = len(matrix), x.shape[2:]
    theta = F.pad(matrix.to(x.dtype), (0, 1))
    folded = x.reshape(n, -1, height, width)  # as in `crop`, a shared draw folds the batch into the channels
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)
    return F.grid_sample(folded, grid, align_corners=False).view(x.shape)


# Columns of a draw. They are fixed, so that policies read equal numbers for the operations they have in common.
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
    """Augmentation by a policy such as "color_crop_cutout" (Gu et al., 2023).

    Operations are applied in this order, each only if the policy lists it: flip; brightness, saturation and contrast
    for "color"; one of crop, scale and rotate, the same for the whole call; cutout. This is the composition of the
    public DiM code. An empty policy leaves images as they are.

    Example:
        augment = Augment("color_crop_cutout")
        images = torch.randn(4, 3, 32, 32)
        draw = augment.draw(4, torch.Generator().manual_seed(0))
        augmented = augment(images, draw)  # an equal draw augments other images alike

    Attributes:
        policy: names of operations, joined by underscores.
        single: apply only one of the listed operations, drawn for the whole call; "color" counts as one. The public DSA
            code does so, but aligns the corners of scale and rotate, which we and DiM do not.

    Raises:
        ValueError: the policy names an unknown operation.

    """

    policy: str
    single: bool = False
    takes_unit_range: ClassVar[bool] = False
    """False: the images are normalized; True: they are in [0, 1]"""

    def __post_init__(self) -> None:
        for name in self._operations():
            if name not in _ACCEPTED:
                raise ValueError(f"Unknown augmentation {name!r}; accepted: {', '.join(_ACCEPTED)}.")

    def draw(self, n: int, rng: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Draw all random numbers of one call: uniforms in [0, 1), float32 [n, 12].

        Args:
            n: number of images, or 1 for a draw that all images share.
            rng: on `device`; None for the global generator of that device.
            device: device of the images.

        """
        uniforms = torch.rand(n, _CHOICE + 1, generator=rng, device=device)
        uniforms[:, _CHOICE] = uniforms[0, _CHOICE].clone()
        return uniforms

    def __call__(self, x: Tensor, draw: Tensor) -> Tensor:
        """Augment normalized images [B, C, H, W] by a draw of 1 or B rows; differentiable.

        Raises:
            ValueError: the draw has neither 1 nor B rows.

        """
        if len(draw) not in (1, len(x)):
            raise ValueError(f"A draw needs 1 or {len(x)} rows for {len(x)} images, got {len(draw)}.")
        listed = self._operations()
        if self.single:
            return _apply_one(listed, x, draw)
        for name in ("flip", "color"):
            if name in listed:
                x = _apply(name, x, draw)
        x = _apply_one([name for name in _GEOMETRIC if name in listed], x, draw)
        if "cutout" in listed:
            x = _apply("cutout", x, draw)
        return x

    def _operations(self) -> list[str]:
        return self.policy.split("_") if self.policy else []


def _apply(name: str, x: Tensor, draw: Tensor) -> Tensor:
    if name == "color":
        for part in _COLOR:
            x = _apply(part, x, draw)
        return x
    operation, columns = _OPERATIONS[name]
    return operation(x, draw[:, columns])


def _apply_one(names: list[str], x: Tensor, draw: Tensor) -> Tensor:
    """Apply one of the named operations, as drawn."""
    if not names:
        return x
    choice = (draw[:, _CHOICE] * len(names)).long()
    if x.device.type == "cpu" and (choice == choice[0]).all():
        return _apply(names[int(choice[0])], x, draw)
    # All operations are computed and one is selected. Reading the choice on the host would stall a GPU at every step,
    # and the batches of stacked networks, which come as one, have a choice each.
    result = _apply(names[0], x, draw)
    for index, name in enumerate(names[1:], start=1):
        result = torch.where((choice == index).view(-1, 1, 1, 1), _apply(name, x, draw), result)
    return result
