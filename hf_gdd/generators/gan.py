"""The conditional GAN of DiM (Gu et al., 2023), for images of 8 to 64 px."""

import math
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hf_gdd.data.image_tensors import MAX_SIZE, MIN_SIZE
from hf_gdd.generators.checks import check_record
from hf_gdd.generators.codes import check_codes, check_distilled_ipc
from hf_gdd.generators.noise import noise
from hf_gdd.generators.pretrained import GeneratorModel
from hf_gdd.generators.sampling import Sampling
from hf_gdd.hub.files import FORMAT_VERSION

SMALLEST_MAP = 4


def map_sizes(size: int) -> list[int]:
    """Return the side lengths from the smallest feature map to the image.

    The image's side is halved, rounding up, until it is at most 4: 32 gives 4, 8, 16, 32 and 28 gives 4, 7, 14, 28, as
    in the published networks.
    """
    sizes = [size]
    while sizes[0] > SMALLEST_MAP:
        sizes.insert(0, math.ceil(sizes[0] / 2))
    return sizes


class ConditionalGANGenerator(GeneratorModel):
    """The conditional generator of DiM (Gu et al., 2023).

    A linear layer is followed by transposed convolutions with BatchNorm. The input is the one-hot label beside
    `noise_dim` normal entries. For ten classes that is the vector of length 100 of the public DiM code, where the label
    overwrites the first ten entries. Here 90 random entries remain for any number of classes.

    The arguments that are not described here are the record of every kind, see `PretrainedGenerator`.

    Args:
        image_shape: (C, H, W), square, 8 to 64 px, 1 or 3 channels.
        width: channels of every hidden layer; 196 in the papers.
        noise_dim: random entries of the input.
        distilled_ipc: number of images of every class in `codes`, which are stored in a file of their own.

    Raises:
        ValueError: a size outside these limits.

    Example:
        generator = ConditionalGANGenerator(("cat", "dog"), image_shape=(3, 32, 32))
        images = generator.sample(torch.tensor([0, 1]), torch.tensor([0, 0]))  # uint8 [2, 3, 32, 32]

    """

    @register_to_config
    def __init__(
        self,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
        width: int = 196,
        noise_dim: int = 90,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        training: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        distilled_ipc: int = 0,
        teacher: dict[str, Any] | None = None,
        fingerprint: str | None = None,
        weights_dtype: str | None = None,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        super().__init__()
        channels, height, side = image_shape
        if height != side or not MIN_SIZE <= side <= MAX_SIZE:
            raise ValueError(
                f"The GAN makes square images of {MIN_SIZE} to {MAX_SIZE} px, not {height}x{side}; pass image_size=."
            )
        if not 1 <= width <= 1024:
            raise ValueError(f"width is {width}; it must lie in 1..1024 (the papers use 196).")
        if not 1 <= noise_dim <= 10_000:
            raise ValueError(f"noise_dim is {noise_dim}; it must lie in 1..10,000 (the papers use 90).")
        check_record(class_names, image_shape, mean, std, training)
        check_distilled_ipc(distilled_ipc, len(class_names))
        self.sampling = Sampling(**sampling or {})
        first, *sizes = map_sizes(side)
        self.start = nn.Sequential(
            nn.Linear(len(class_names) + noise_dim, width * first * first),
            nn.BatchNorm1d(width * first * first),
            nn.ReLU(),
            nn.Unflatten(1, (width, first, first)),
        )
        blocks: list[nn.Module] = []
        for i, size in enumerate(sizes):
            kernel = 3 if size % 2 else 4  # doubles the map, less one if `size` is odd
            blocks += _with_batch_norm(nn.ConvTranspose2d(width, width, kernel, stride=2, padding=1), width)
            for _ in range(3 if i == 0 else 1):
                blocks += _with_batch_norm(nn.Conv2d(width, width, 3, padding=1), width)
        self.blocks = nn.Sequential(*blocks[:-3], nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())

    @property
    def code_layout(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of the code of one image."""
        return torch.float16, (self.config.noise_dim,)

    def checked_codes(self, codes: Tensor) -> Tensor:
        """Return codes as they are stored, float16 [K, M, noise_dim].

        Raises:
            ValueError: they do not fit, or are not finite.

        """
        codes = codes.half()
        check_codes(codes, self.num_classes, self.config.noise_dim)
        return codes

    def forward(self, code: Tensor) -> Tensor:
        """Make images in [-1, 1], [B, C, H, W], from codes [B, K + noise_dim]."""
        return self.blocks(self.start(code))

    def code(self, labels: Tensor, normal: Tensor) -> Tensor:
        """Return the input [B, K + noise_dim] of labels [B] and noise [B, noise_dim]."""
        return torch.cat([F.one_hot(labels, self.num_classes).to(normal), normal], dim=1)

    def plain_codes(self, labels: Tensor, indices: Tensor, seed: int = 0) -> Tensor:
        """Return the noise of plain draws, float32 [B, noise_dim]."""
        return noise(seed, labels, indices, (self.config.noise_dim,))

    def make(self, labels: Tensor, indices: Tensor, seed: int, sampling: Any) -> Tensor:
        """Make images in [-1, 1] from the counter-based noise of each (label, index).

        On a CPU weights in half precision are cast to float32 first: few CPUs compute in half precision.
        """
        if self.device.type == "cpu" and self.dtype in (torch.float16, torch.bfloat16):
            return deepcopy(self).float().make(labels, indices, seed, sampling)
        normal = sampling.truncation * self.plain_codes(labels, indices, seed)
        if self.codes is not None and sampling.distilled and seed == 0:
            last = self.codes.shape[1] - 1
            distilled = self.codes.to(normal)[labels, indices.clamp(max=last)]
            normal = torch.where((indices <= last)[:, None], distilled, normal)
        return self(self.code(labels, normal.to(self.dtype)))


class Discriminator(nn.Module):
    """The generator's mirror image, with a score and class logits for every image.

    LayerNorm acts on each image alone, which makes the gradient penalty well defined (Gulrajani et al., 2017).
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], width: int = 196) -> None:
        super().__init__()
        channels, _, side = image_shape
        sizes = map_sizes(side)[::-1]
        layers: list[nn.Module] = []
        for i, (size, halved) in enumerate(pairwise(sizes)):
            for _ in range(3 if i == len(sizes) - 2 else 1):
                layers += [nn.Conv2d(channels, width, 3, padding=1), _LayerNorm([width, size, size]), nn.LeakyReLU()]
                channels = width
            layers += [nn.Conv2d(width, width, 3, stride=2, padding=1)]
            layers += [_LayerNorm([width, halved, halved]), nn.LeakyReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.score = nn.Linear(width, 1)
        self.classes = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B], high for real, and class logits [B, K] of images in [-1, 1]."""
        features = self.features(images)
        return self.score(features).squeeze(1), self.classes(features)


class _LayerNorm(nn.LayerNorm):
    """LayerNorm over a whole image; unlike torch's it keeps a channels-last layout."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous():
            return super().forward(x)
        last = x.permute(0, 2, 3, 1)
        weight, bias = (parameter.permute(1, 2, 0) for parameter in (self.weight, self.bias))
        return F.layer_norm(last, last.shape[1:], weight, bias, self.eps).permute(0, 3, 1, 2)


def _with_batch_norm(layer: nn.Module, width: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(width), nn.ReLU()]
