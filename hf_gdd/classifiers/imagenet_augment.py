"""Augmentation for ImageNet subsets of the public Minimax code (Gu et al., 2024)."""

import itertools
import math
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_AREA, _MAX_RATIO, _JITTER, _LIGHTING = 0.5, 4 / 3, 0.4, 0.1
_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Standard deviations and directions of the colors of ImageNet's pixels in [0, 1] (Krizhevsky et al., 2012).
_COLOR_VALUES = (0.2175, 0.0188, 0.0045)
_COLOR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_ORDERS = tuple(itertools.permutations(range(3)))


class ImageNetAugment:
    """Random crop, mirror image, color jitter and lighting, drawn anew for each image.

    The crop has half to all of the area and a ratio of 3:4 to 4:3, and is resized. Half of the images are mirrored.
    Brightness, contrast and saturation change by factors of 0.6 to 1.4, in random order. Colors are shifted along their
    principal axes. Saturation and colors of one-channel images do not change.

    Example:
        augment = ImageNetAugment()
        images = torch.rand(4, 3, 64, 64)
        augmented = augment(images, augment.draw(4))

    """

    takes_unit_range: ClassVar[bool] = True
    """True: the images are in [0, 1], before normalization"""

    def draw(self, n: int, rng: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Draw all random numbers for n images: uniforms in [0, 1), float32 [n, 12]."""
        return torch.rand(n, 12, generator=rng, device=device)

    def __call__(self, x: Tensor, draw: Tensor) -> Tensor:
        """Augment images [B, C, H, W] in [0, 1] by a draw of B rows."""
        return self._shift_colors(self._jitter(self._crop(x, draw[:, :5]), draw[:, 5:9]), draw[:, 9:])

    def _crop(self, x: Tensor, u: Tensor) -> Tensor:
        area = _MIN_AREA + (1 - _MIN_AREA) * u[:, 0]
        ratio = ((2 * u[:, 1] - 1) * math.log(_MAX_RATIO)).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
        zero = torch.zeros_like(width)
        across = torch.stack([mirror * width, zero, (1 - width) * (2 * u[:, 2] - 1)], dim=1)
        down = torch.stack([zero, height, (1 - height) * (2 * u[:, 3] - 1)], dim=1)
        grid = F.affine_grid(torch.stack([across, down], dim=1).to(x.dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _jitter(self, x: Tensor, u: Tensor) -> Tensor:
        factors = (1 + _JITTER * (2 * u[:, :3] - 1)).to(x.dtype).view(-1, 3, 1, 1, 1)
        orders = _table(_ORDERS, x.device)[(u[:, 3] * len(_ORDERS)).long()]
        for turn in range(3):
            gray = self._to_gray(x)
            # Brightness, contrast and saturation scale the distance from black, from the mean and from gray.
            anchors = (torch.zeros_like(x), gray.mean((2, 3), keepdim=True).expand_as(x), gray.expand_as(x))
            changed = [anchor + factors[:, i] * (x - anchor) for i, anchor in enumerate(anchors)]
            operation = orders[:, turn].view(-1, 1, 1, 1)
            x = torch.where(operation == 0, changed[0], torch.where(operation == 1, changed[1], changed[2]))
        return x

    def _to_gray(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return x.mean(1, keepdim=True)
        return (x * _table(_GRAY, x.device).view(3, 1, 1)).sum(1, keepdim=True)

    def _shift_colors(self, x: Tensor, u: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return x
        amounts = _LIGHTING * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)) * _table(_COLOR_VALUES, u.device)
        return x + (amounts @ _table(_COLOR_VECTORS, u.device).T).to(x.dtype)[:, :, None, None]


@cache
def _table(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return constants as a tensor, cached because every copy to a GPU waits for it."""
    return torch.tensor(values, device=device)
