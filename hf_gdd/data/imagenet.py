"""ImageNet: its classes by WordNet id, the subsets that the diffusion papers distil, and their augmentation."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

SYNSETS = Path(__file__).parent / "imagenet_synsets.txt"

# In the order of their local labels. IDC: the first ten of the list of a hundred in the public Minimax code.
SUBSETS: dict[str, tuple[str, ...]] = {
    "imagenette": (
        *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
        *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
    ),
    "imagewoof": (
        *("n02096294", "n02093754", "n02111889", "n02088364", "n02086240"),
        *("n02089973", "n02087394", "n02115641", "n02099601", "n02105641"),
    ),
    "imageidc": (
        *("n02869837", "n01749939", "n02488291", "n02107142", "n13037406"),
        *("n02091831", "n04517823", "n04589890", "n03062245", "n01773797"),
    ),
}


@cache
def synsets() -> tuple[str, ...]:
    """The WordNet id of each of the 1,000 classes of ILSVRC 2012, in the order that pretrained models number them."""
    return tuple(SYNSETS.read_text().split())


def rows_of(classes: Sequence[str], labels: Mapping[int, str]) -> tuple[int, ...]:
    """The number under which a model knows each class: never by position in a sorted list, which a subset changes.

    Args:
        classes: names, as in `labels` or any one of the names parted by commas there, or WordNet ids.
        labels: what the model calls each number, as `id2label` in a pipeline's model_index.json.

    Raises:
        ValueError: a class is unknown, or a name stands for several.

    """
    rows = []
    for wanted in classes:
        if wanted in synsets() and len(labels) == len(synsets()):
            found = [synsets().index(wanted)]
        else:
            key = _plain(wanted)
            found = [row for row, text in labels.items() if key == _plain(text)]
            found = found or [row for row, text in labels.items() if key in map(_plain, text.split(","))]
        if len(found) != 1:
            said = f"is the name of {len(found)} classes" if found else "is none of the model's classes"
            raise ValueError(f"{wanted!r} {said}; name it as the model does, or by its WordNet id, such as n01440764.")
        rows += found
    return tuple(rows)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


_LEAST_AREA, _MOST_OBLONG, _JITTER, _LIGHTING = 0.5, 4 / 3, 0.4, 0.1
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Deviations and directions of the colours of ImageNet's pixels in unit range (Krizhevsky et al., 2012).
_COLOUR_VALUES = (0.2175, 0.0188, 0.0045)
_COLOUR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_ORDERS = tuple(itertools.permutations(range(3)))


class ImageNetAugment:
    """What the public Minimax code trains classifiers with, for whole batches, every image with draws of its own.

    A crop of half to all of the area, 3:4 to 4:3, resized; a mirror image half the time; brightness, contrast and
    saturation by factors of 0.6 to 1.4, in random order; a shift along the colours' principal axes. Images of one
    channel keep saturation and colours.
    """

    of_unit: ClassVar[bool] = True  # it takes images in [0, 1], before they are normalised

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
            grey = self._grey(x)
            towards = (torch.zeros_like(x), grey.mean((2, 3), keepdim=True).expand_as(x), grey.expand_as(x))
            made = [to + factors[:, i] * (x - to) for i, to in enumerate(towards)]
            which = orders[:, turn].view(-1, 1, 1, 1)
            x = torch.where(which == 0, made[0], torch.where(which == 1, made[1], made[2]))
        return x

    def _grey(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return x.mean(1, keepdim=True)
        return (x * _table(_GREY, x.device).view(3, 1, 1)).sum(1, keepdim=True)

    def _lit(self, x: Tensor, u: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return x
        amounts = _LIGHTING * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)) * _table(_COLOUR_VALUES, u.device)
        return x + (amounts @ _table(_COLOUR_VECTORS, u.device).T).to(x.dtype)[:, :, None, None]


@cache
def _table(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Made once: each copy to a GPU would wait for it."""
    return torch.tensor(values, device=device)
