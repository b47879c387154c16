"""What classifiers see images through: statistics of the real training set, of its channels or of whole images."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.pixels import to_unit

_BATCH = 1024


@dataclass(frozen=True)
class Normalize:
    """Unit-range images [B, C, H, W] to the range classifiers see: per-channel mean 0 and deviation 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, unit: Tensor) -> Tensor:
        """Normalize; differentiable."""
        mean, std = (_on_device(values, unit.device, unit.dtype) for values in (self.mean, self.std))
        return (unit - mean) / std

    def inverse(self, normalized: Tensor) -> Tensor:
        """Back to unit range, not clamped."""
        mean, std = (_on_device(values, normalized.device, normalized.dtype) for values in (self.mean, self.std))
        return normalized * std + mean


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once: each copy to a GPU would wait for it."""
    return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class ZCAWhitening:
    """Unit-range images [B, C, H, W] to images whose pixels are nearly uncorrelated over the real set (ZCA).

    Krizhevsky, 2009, with the regularized square root that the public dataset-distillation codes take from kornia.

    Attributes:
        mean: of every pixel, [D] with D = C * H * W.
        forward: [D, D], symmetric.
        back: its inverse, but for rounding.

    """

    mean: Tensor
    forward: Tensor
    back: Tensor

    @classmethod
    def fitted(cls, data: ImageTensors, eps: float = 0.1) -> "ZCAWhitening":
        """The whitening of a real training set.

        Args:
            data: images [N, C, H, W].
            eps: added to the variances before their root: keeps directions of little variance from being blown up.

        """
        rows = torch.arange(len(data), device=data.images.device).split(_BATCH)
        mean = sum(to_unit(data.gather(part)[0]).flatten(1).double().sum(0) for part in rows) / len(data)
        spread = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
        for part in rows:
            centered = to_unit(data.gather(part)[0]).flatten(1) - mean.float()
            spread += centered.T @ centered
        variances, directions = torch.linalg.eigh(spread / max(len(data) - 1, 1))
        roots = (variances.clamp(min=0) + eps).sqrt()
        forward, back = (((directions * scale) @ directions.T).float() for scale in (1 / roots, roots))
        return cls(mean.float(), forward, back)

    def __call__(self, unit: Tensor) -> Tensor:
        """Whiten; differentiable."""
        return ((unit.flatten(1) - self.mean) @ self.forward).view(unit.shape)

    def inverse(self, whitened: Tensor) -> Tensor:
        """Back to unit range, not clamped."""
        return (whitened.flatten(1) @ self.back + self.mean).view(whitened.shape)


InputTransform = Normalize | ZCAWhitening


def input_transform(data: ImageTensors, zca: bool) -> InputTransform:
    """The statistics of a real training set, of its pixels together or of its channels."""
    return _zca_whitening(data) if zca else Normalize(data.mean, data.std)


@lru_cache(maxsize=1)
def _zca_whitening(data: ImageTensors) -> ZCAWhitening:
    """Fitted once for a training and its evaluation: it takes seconds."""
    return ZCAWhitening.fitted(data)
