"""Input transforms of classifiers: per-channel normalization or ZCA whitening."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.pixels import to_unit

_BATCH = 1024


@dataclass(frozen=True)
class Normalize:
    """Normalize each channel to mean 0 and deviation 1 over the real training set.

    Example:
        data = ImageTensors.from_dataset("digits")
        transform = Normalize(data.mean, data.std)
        normalized = transform(to_unit(data.images))

    Attributes:
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].

    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize floats [B, C, H, W] in [0, 1]; differentiable."""
        mean, std = (_on_device(values, images.device, images.dtype) for values in (self.mean, self.std))
        return (images - mean) / std

    def inverse(self, normalized: Tensor) -> Tensor:
        """Map normalized images back to [0, 1], without clamping."""
        mean, std = (_on_device(values, normalized.device, normalized.dtype) for values in (self.mean, self.std))
        return normalized * std + mean


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a tensor [C, 1, 1], cached because every copy to a GPU waits for it."""
    return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class ZCAWhitening:
    """Decorrelate all pixels over the real training set (ZCA; Krizhevsky, 2009).

    The regularized square root is that of kornia, which the public dataset distillation codes use.

    Example:
        data = ImageTensors.from_dataset("digits")
        transform = ZCAWhitening.fit(data)
        whitened = transform(to_unit(data.images))

    Attributes:
        mean: mean of every pixel, float32 [D] with D = C * H * W.
        whitening: symmetric matrix [D, D] that whitens.
        coloring: its inverse, up to rounding.

    """

    mean: Tensor
    whitening: Tensor
    coloring: Tensor

    @classmethod
    def fit(cls, data: ImageTensors, eps: float = 0.1) -> "ZCAWhitening":
        """Fit the whitening to a real training set.

        Args:
            data: images [N, C, H, W].
            eps: added to all variances, so that directions of little variance are not amplified much.

        """
        batches = torch.arange(len(data), device=data.images.device).split(_BATCH)
        mean = sum(to_unit(data.gather(rows)[0]).flatten(1).double().sum(0) for rows in batches) / len(data)
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
        for rows in batches:
            centered = to_unit(data.gather(rows)[0]).flatten(1) - mean.float()
            scatter += centered.T @ centered
        variances, directions = torch.linalg.eigh(scatter / max(len(data) - 1, 1))
        roots = (variances.clamp(min=0) + eps).sqrt()
        whitening, coloring = (((directions * scale) @ directions.T).float() for scale in (1 / roots, roots))
        return cls(mean.float(), whitening, coloring)

    def __call__(self, images: Tensor) -> Tensor:
        """Whiten floats [B, C, H, W] in [0, 1]; differentiable."""
        return ((images.flatten(1) - self.mean) @ self.whitening).view(images.shape)

    def inverse(self, whitened: Tensor) -> Tensor:
        """Map whitened images back to [0, 1], without clamping."""
        return (whitened.flatten(1) @ self.coloring + self.mean).view(whitened.shape)


InputTransform = Normalize | ZCAWhitening


def input_transform(data: ImageTensors, zca: bool) -> InputTransform:
    """Return the normalization or, with `zca`, the whitening of a real training set."""
    return _zca_whitening(data) if zca else Normalize(data.mean, data.std)


@lru_cache(maxsize=1)
def _zca_whitening(data: ImageTensors) -> ZCAWhitening:
    """Return the whitening, cached because the fit takes seconds."""
    return ZCAWhitening.fit(data)
