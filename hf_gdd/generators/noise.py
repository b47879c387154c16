"""Counter-based noise: a pure function of (seed, label, index, stream)."""

import torch
from torch import Tensor

from hf_gdd.utils.random import GOLDEN, mix64, shift_right


def noise(seed: int, labels: Tensor, indices: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Return standard normal noise, one independent block for every (label, index).

    Integer hashing (splitmix64) is exact on every device; only the last step, to normal deviates, may round
    differently.

    Args:
        seed: any integer in [0, 2**63).
        labels: int64 [B], the class of each image.
        indices: int64 [B], the number of each image within its class.
        shape: shape of one image's block of noise.
        stream: number of the block, for images that need several, such as one for each denoising step.

    Returns:
        float32 [B, *shape] on the device of `labels`.

    """
    key = torch.full_like(labels, seed)
    for part in (labels, indices, torch.full_like(labels, stream)):
        key = mix64(key * GOLDEN + part + 1)
    size = torch.Size(shape).numel()
    pairs = torch.arange((size + 1) // 2, device=labels.device)
    bits = mix64(key[:, None] + (pairs + 1) * GOLDEN)

    # Box-Muller: 32 bits for the radius, 32 for the angle. The half keeps the logarithm finite.
    radius = ((shift_right(bits, 32) + 0.5) * 2.0**-32).log().mul(-2).clamp(min=0).sqrt()
    angle = (bits & 0xFFFFFFFF) * (2 * torch.pi * 2.0**-32)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return normal[:, :size].reshape(len(labels), *shape)
