"""The autoencoder of the diffusion methods, its losses, and a data set's latents."""

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from hf_gdd.data.image_tensors import ImageTensors
from hf_gdd.data.pixels import to_tanh
from hf_gdd.utils.device import at_least_float32

ENCODED_AT_ONCE = 64


def small_autoencoder(shape: tuple[int, int, int], *, width: int, levels: int, channels: int) -> AutoencoderKL:
    """Build an untrained `AutoencoderKL` for images (C, H, W).

    Args:
        shape: (C, H, W), H and W equal.
        width: channels of the first level; each further level has twice as many.
        levels: number of levels; latents are [channels, H / 2^(levels - 1), W / 2^(levels - 1)].
        channels: channels of the latents.

    Raises:
        ValueError: the image's side cannot be halved so often.

    """
    side, factor = shape[-1], 2 ** (levels - 1)
    if side % factor or side // factor < 2:
        near = max(2 * factor, round(side / factor) * factor)
        raise ValueError(
            f"Images of {side} px cannot be halved {levels - 1} times: pass image_size={near}, or fewer vae_levels."
        )
    return AutoencoderKL(
        in_channels=shape[0],
        out_channels=shape[0],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(width << level for level in range(levels)),
        latent_channels=channels,
        norm_num_groups=math.gcd(width, 32),
        sample_size=side,
    )


def autoencoder_losses(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Return the mean `reconstruction` error and `divergence` of an autoencoder.

    Args:
        vae: the autoencoder.
        images: in [-1, 1], [B, C, H, W].
        noise: normal, in the shape of the latents.

    """
    posterior = vae.encode(images).latent_dist
    mean, log_variance = at_least_float32(posterior.mean), at_least_float32(posterior.logvar)
    latents = mean + (log_variance / 2).exp() * noise
    restored = at_least_float32(vae.decode(latents.to(images.dtype)).sample)
    return {
        "reconstruction": F.mse_loss(restored, images),
        "divergence": (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2,
    }


class Latents:
    """Posteriors of a data set's latents, encoded once and stored on the device.

    Args:
        vae: the autoencoder.
        data: the images.
        flip: store the latents of mirrored images as well.

    Attributes:
        mean: [F, N, c, h, w]; F is 2 with `flip`, else 1.
        deviation: standard deviations, [F, N, c, h, w].
        labels: [N], on the same device.
        scale: factor that brings all latents together to a standard deviation of 1.

    """

    @torch.no_grad()
    def __init__(self, vae: AutoencoderKL, data: ImageTensors, flip: bool) -> None:
        means, deviations = [], []
        for mirrored in (False, True)[: 1 + flip]:
            for rows in torch.arange(len(data), device=data.images.device).split(ENCODED_AT_ONCE):
                images = to_tanh(data.gather(rows)[0])
                posterior = vae.encode((images.flip(3) if mirrored else images).to(vae.dtype)).latent_dist
                means.append(at_least_float32(posterior.mean))
                deviations.append(at_least_float32(posterior.std))
        shape = (1 + flip, len(data), *means[0].shape[1:])
        self.mean, self.deviation = torch.cat(means).view(shape), torch.cat(deviations).view(shape)
        self.labels = data.labels.to(self.mean.device)
        self.scale = 1 / float((self.mean.var() + self.deviation.square().mean()).sqrt())

    @property
    def shape(self) -> torch.Size:
        """Shape of one latent, [c, h, w]."""
        return self.mean.shape[2:]

    def sample(self, rows: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        """Sample latents [B, c, h, w] from the posteriors of rows, unscaled.

        Args:
            rows: row numbers of the data set, int64 [B].
            u: uniform in [0, 1), [B]; with `flip`, those from 0.5 on choose the mirrored image.
            noise: normal, [B, c, h, w].

        """
        which = (u * len(self.mean)).long()
        return self.mean[which, rows] + self.deviation[which, rows] * noise
