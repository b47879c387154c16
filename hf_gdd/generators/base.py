"""Base class of every generator, with defaults for optional abilities.

This module is longer than others because every ability that any kind of generator may have is explained here once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hf_gdd.data.normalization import InputTransform
from hf_gdd.data.pixels import tanh_to_uint8
from hf_gdd.generators.checks import check_request
from hf_gdd.hub.files import FORMAT_VERSION
from hf_gdd.report import Report
from hf_gdd.utils.device import keep_freed_memory
from hf_gdd.utils.plotting import image_grid

if TYPE_CHECKING:
    from PIL.Image import Image

    from hf_gdd.generators.teacher import Teacher

# Images are always made this many at a time, padded if need be: kernels may round differently at another batch size.
TILE = {"cpu": 64}
DEFAULT_TILE = 512
GRID_COLUMNS, GRID_ROWS = 10, 100


def class_grid(num_classes: int, n: int) -> tuple[Tensor, Tensor]:
    """Return labels and indices, int64 [K * n], of the first n images of K classes."""
    return torch.arange(num_classes).repeat_interleave(n), torch.arange(n).repeat(num_classes)


class Generator:
    """A deterministic function from (label, index, seed) to an image.

    On one device type an image is the same in any batch, shard or process. A kind of generator implements `make` and
    `weights`; `PretrainedGenerator` adds saving, loading and pushing. The optional abilities (`select`, `reconstruct`,
    `soft_labels`, `label_images`) have defaults that say no.

    A generator may have distilled codes for the first M images of every class. Image i < M is then distilled if the
    seed is 0. All others are plain draws: i >= M, other seeds, and `sampling.distilled=False`.

    Attributes:
        max_ipc: number of images per class; None for no limit.
        sampling: settings that change pixels beside the weights; part of every identity.
        report: accuracies measured with this generator; None if it was not evaluated.
        origin: repo and commit that it was loaded from, `me/generator@<sha>`, or None.
        codes: inputs from which the first images of every class are made, [K, M, ...]; None if there are none.
        teacher: network whose logits are soft labels; None for hard labels alone.

    Example:
        labels, indices = torch.tensor([0, 0, 7]), torch.tensor([0, 1, 0])
        images = generator.sample(labels, indices)  # uint8 [3, C, H, W]

    """

    config: Mapping[str, Any]
    device: torch.device
    max_ipc: int | None = None
    sampling: Any
    report: Report | None = None
    origin: str | None = None
    codes: Tensor | None = None
    teacher: "Teacher | None" = None

    # Record of the classes and the training.

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return tuple(self.config.class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.config.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return tuple(self.config.image_shape)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean of the real training images, in [0, 1]."""
        return tuple(self.config.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation of the real training images, in [0, 1]."""
        return tuple(self.config.std)

    @property
    def method(self) -> str:
        """Name of the training method."""
        return (self.config.training or {}).get("method", "untrained")

    @property
    def seed(self) -> int | None:
        """Training seed, if known."""
        return (self.config.training or {}).get("seed")

    @property
    def license(self) -> str | list[str] | None:
        """License of the training data, as its card names it."""
        return (self.config.training or {}).get("license")

    # Images.

    @property
    def tile(self) -> int:
        """Number of images made at a time, fixed for a device type."""
        return TILE.get(self.device.type, DEFAULT_TILE)

    def make(self, labels: Tensor, indices: Tensor, seed: int, sampling: Any) -> Tensor:
        """Make images in [-1, 1], float [B, C, H, W].

        Each image may depend on its own label and index alone, never on the others in the batch.
        """
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Make images, the same to the pixel in any batch.

        Other device types and other versions of the libraries may round differently.

        Args:
            labels: int64 [B].
            indices: int64 [B], the number of each image within its class.
            seed: another seed gives another image for every (label, index).
            sampling: overrides `self.sampling`.

        Returns:
            uint8 [B, C, H, W] on the generator's device.

        Raises:
            ValueError: a label or an index is out of range, or `sampling` is another kind of generator's.

        """
        check_request(self, labels, indices)
        sampling = self.choose_sampling(sampling)
        keep_freed_memory(self.device)
        size = self.tile
        pad = (0, -len(labels) % size)
        # A blocking copy would wait for the GPU to finish all earlier work.
        padded = (F.pad(x, pad).to(self.device, non_blocking=True) for x in (labels, indices))
        tiles = list(zip(*(x.split(size) for x in padded), strict=True))
        bar = tqdm(tiles, desc="sampling", unit="img", unit_scale=size, delay=2, leave=False, dynamic_ncols=True)
        images = [tanh_to_uint8(self.make(*tile, seed, sampling)) for tile in bar]
        empty = torch.empty(0, *self.image_shape, dtype=torch.uint8, device=self.device)
        return torch.cat([empty, *images])[: len(labels)]

    @property
    def distilled_ipc(self) -> int:
        """Number M of distilled images of every class; 0 if there are none."""
        return 0 if self.codes is None else self.codes.shape[1]

    def choose_sampling(self, sampling: Any = None) -> Any:
        """Return the settings to sample by: these, or the generator's own if None.

        Settings that make the same images are made equal: without codes nothing is distilled.

        Raises:
            ValueError: they are another kind of generator's.

        """
        sampling = self.sampling if sampling is None else sampling
        if type(sampling) is not type(self.sampling):
            raise ValueError(f"This generator is sampled by a {type(self.sampling).__name__}, not {sampling!r}.")
        return sampling.without_codes() if self.codes is None else sampling

    def sampling_identity(self, sampling: Any = None) -> dict[str, Any]:
        """Return the settings as primitives, for configs, cards and reports.

        Without codes `distilled` is left out, as in records of versions that had none.
        """
        fields = self.choose_sampling(sampling).identity()
        return fields if self.codes is not None else {name: fields[name] for name in fields if name != "distilled"}

    def grid(self, seed: int = 0) -> "Image":
        """Return a picture of the first images of up to 100 classes, a row per class."""
        rows, columns = min(self.num_classes, GRID_ROWS), min(GRID_COLUMNS, self.max_ipc or GRID_COLUMNS)
        return image_grid(self.sample(*class_grid(rows, columns), seed), columns, self.class_names[:rows])

    # Identity.

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Every tensor that decides pixels, by name."""
        raise NotImplementedError

    @property
    def stored_bytes(self) -> int:
        """Size of the weights and buffers, without codes and teacher."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    def stored_parts(self, ipc: int) -> dict[str, int]:
        """Return the bytes of each part that a set of `ipc` images per class needs."""
        parts = {"generator": self.stored_bytes}
        if self.codes is not None:
            parts["codes"] = self.codes[:, :ipc].nbytes
        if self.teacher is not None:
            parts["teacher"] = self.teacher.stored_bytes
        return parts

    @property
    def fingerprint(self) -> str:
        """The sha256 of all that decides images and labels, and of the statistics.

        A generator that was saved in format 1 and not changed since has that of its kind and weights alone, by which
        its cached sets and its reports know it.
        """
        digest, tensors = hashlib.sha256(repr(self.kind).encode()), dict(self.weights)
        if self.config.get("format_version", FORMAT_VERSION) >= 2:
            record = [list(self.class_names), list(map(float, self.mean)), list(map(float, self.std))]
            if self.codes is not None:
                tensors["/codes"] = self.codes
            if self.teacher is not None:
                record.append(self.teacher.identity)
                tensors |= {f"/teacher.{name}": tensor for name, tensor in self.teacher.state_dict().items()}
            digest.update(json.dumps(record).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def kind(self) -> tuple[Any, ...]:
        """Class, number of classes and image shape, which with the weights decide pixels."""
        return type(self).__name__, self.num_classes, self.image_shape

    # Optional abilities.

    @property
    def has_soft_labels(self) -> bool:
        """True if the images have a teacher's logits."""
        return self.teacher is not None

    @property
    def zca(self) -> bool:
        """True if the teacher sees whitened images; its students should see them too."""
        return self.teacher is not None and self.teacher.config.zca

    def soft_labels(
        self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None, *, images: Tensor | None = None
    ) -> Tensor | None:
        """Return the teacher's logits of images, the same to the bit in any batch.

        Args:
            labels: int64 [B], like `indices`, `seed` and `sampling` as in `sample`.
            indices: int64 [B].
            seed: seed of the images.
            sampling: sampling settings of the images.
            images: what `sample` returned for the same arguments; made again if None.

        Returns:
            float16 [B, K], or None if labels are hard.

        """
        if not self.has_soft_labels:
            return None
        return self.label_images(self.sample(labels, indices, seed, sampling) if images is None else images)

    def label_images(self, images: Tensor, transform: InputTransform | None = None) -> Tensor:
        """Return the teacher's logits of any images uint8 [N, C, H, W], float16 [N, K].

        Args:
            images: on any device, where the logits are put too.
            transform: input transform of a teacher that sees whitened images; others need none.

        Raises:
            ValueError: the generator has no teacher, or the teacher needs a transform.

        """
        if self.teacher is None:
            raise ValueError("This generator has hard labels only: no teacher comes with it.")
        return self.teacher.logits(images, transform)

    def select(self, classes: Sequence[str], class_names: Sequence[str] | None = None) -> "Generator":
        """Return the same model for some of its classes only, in this order.

        Raises:
            ValueError: this kind of generator has no classes to choose from, or does not know one of these.

        """
        raise ValueError("Only a diffusion generator has classes to choose from: leave classes out.")

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """Encode and decode images by the generator's autoencoder.

        Args:
            images: uint8 [B, C, H, W].

        Returns:
            uint8 [B, C, H, W], or None if there is no autoencoder.

        """
        return None

    # Storage.

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the folder that `from_pretrained` loads and that would be pushed."""
        raise NotImplementedError
