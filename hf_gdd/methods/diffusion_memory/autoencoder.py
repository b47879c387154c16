"""The autoencoder of the diffusion methods: a small one from scratch, its losses, and a data set's latents."""

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
    """An untrained `AutoencoderKL` for images (C, H, W), with latents [channels, H / 2^(levels-1), ...].

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
    """Return the mean reconstruction error and divergence of a variational autoencoder.

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
    """Latents of a data set, encoded once and stored on the device: posterior means and standard deviations.

    Args:
        vae: the autoencoder.
        data: the images.
        flip: store the latents of mirrored images as well.

    Attributes:
        mean: [F, N, c, h, w], F 1 or 2.
        deviation: [F, N, c, h, w].
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

    def sample(self, rows: Tensor, mirrored: Tensor, noise: Tensor) -> Tensor:
        """Sample the posterior of these rows [B], unscaled, by uniforms [B] and normal noise [B, c, h, w]."""
        which = (mirrored * len(self.mean)).long()
        return self.mean[which, rows] + self.deviation[which, rows] * noise
