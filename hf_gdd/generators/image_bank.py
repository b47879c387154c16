"""Bank of stored images, with a teacher's soft labels, as a generator."""

import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from hf_gdd.classifiers.learner import predict
from hf_gdd.classifiers.networks import build_network
from hf_gdd.data.normalization import InputTransform
from hf_gdd.generators.checks import check_record, check_request
from hf_gdd.generators.pretrained import GeneratorModel
from hf_gdd.generators.sampling import StoredSampling
from hf_gdd.hub.files import CONFIG_NAME, FORMAT_VERSION, LoadError, check_files

MAX_BYTES = 100_000_000_000


class ImageBank(GeneratorModel):
    """Stored images, equally many of every class, and a teacher's logits for each.

    The teacher is stored too, so that it can label other images: to see what the images add, compare with random real
    images that have labels of the same teacher.

    The arguments that are not described here are the record of every kind, see `PretrainedGenerator`. `sampling` stays
    empty, since nothing changes stored images.

    Args:
        ipc: images of every class.
        teacher: architecture of the network that gave the soft labels; None for hard labels alone.
        zca: True if the teacher sees whitened images, see `hf_gdd.data.normalization.ZCAWhitening`.

    Raises:
        ValueError: a size out of range, or an unknown architecture.

    Example:
        images = torch.randint(256, (2, 10, 3, 32, 32), dtype=torch.uint8)  # 10 images of each of two classes
        bank = ImageBank.from_images(images, class_names=("cat", "dog"))

    """

    sampling = StoredSampling()

    @register_to_config
    def __init__(
        self,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
        ipc: int,
        teacher: str | None = None,
        zca: bool = False,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        training: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        fingerprint: str | None = None,
        weights_dtype: str | None = None,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        super().__init__()
        check_record(class_names, image_shape, mean, std, training)
        num_classes, (channels, height, width) = len(class_names), image_shape
        if ipc < 1 or ipc * num_classes * channels * height * width > MAX_BYTES:
            raise ValueError(
                f"A bank of {ipc} images {tuple(image_shape)} of {num_classes} classes is empty or too large."
            )
        self.register_buffer("images", torch.zeros(num_classes, ipc, *image_shape, dtype=torch.uint8))
        if teacher is not None:
            self.register_buffer("labels", torch.zeros(num_classes, ipc, num_classes, dtype=torch.float16))
            # `labeller` is the name of these tensors in saved banks.
            self.labeller = build_network(teacher, num_classes, tuple(image_shape)).half().requires_grad_(False)

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> "ImageBank":
        """Build the bank, unless its config claims more than its files hold.

        See `PretrainedGenerator.read`.
        """
        check_files(folder)
        num_classes, images = len(config["class_names"]), len(config["class_names"]) * config["ipc"]
        claimed = images * math.prod(config["image_shape"]) + 2 * images * num_classes * bool(config.get("teacher"))
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if claimed > stored:  # the constructor would take that much memory
            raise LoadError(
                f"{folder / CONFIG_NAME} claims {claimed:,} bytes of images and labels, but the weights are {stored:,} "
                "bytes: fetch or save it again."
            )
        return super().read(folder, config, dtype)

    @property
    def max_ipc(self) -> int:
        """Number of images of every class."""
        return self.config.ipc

    @property
    def has_soft_labels(self) -> bool:
        """True if the images have a teacher's logits."""
        return self.config.teacher is not None

    @property
    def zca(self) -> bool:
        """True if the teacher sees whitened images; its students should see them too."""
        return self.config.zca

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.images.device

    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Return the stored images, whatever the seed; see `Generator.sample`."""
        check_request(self, labels, indices)
        if not isinstance(sampling, (StoredSampling, type(None))):
            raise ValueError(f"The images of this generator are stored: no {sampling!r} changes them.")
        return self.images[labels.to(self.device), indices.to(self.device)]

    def soft_labels(self, labels: Tensor, indices: Tensor) -> Tensor | None:
        """Return the teacher's logits, float16 [B, K]; None if labels are hard."""
        check_request(self, labels, indices)
        if not self.has_soft_labels:
            return None
        return self.labels[labels.to(self.device), indices.to(self.device)].half()

    @classmethod
    def from_images(
        cls,
        images: Tensor,
        *,
        teacher: tuple[str, Mapping[str, Tensor]] | None = None,
        transform: InputTransform | None = None,
        **record: Any,
    ) -> "ImageBank":
        """Make a bank of these images, with the labels of a teacher.

        Args:
            images: uint8 [K, ipc, C, H, W].
            teacher: architecture and `state_dict` of the teacher, stored in half precision.
            transform: input transform of the teacher.
            record: other arguments of the class.

        Raises:
            ValueError: a teacher without a transform, or the reverse, or a teacher whose logits are not finite.

        """
        if (teacher is None) != (transform is None):
            raise ValueError("Pass a teacher and its input transform together, or neither for hard labels.")
        name, weights = teacher or (None, {})
        bank = cls(image_shape=tuple(images.shape[2:]), ipc=images.shape[1], teacher=name, **record).to(images.device)
        bank.images.copy_(images)
        if teacher is not None:
            bank.labeller.load_state_dict(weights)
            bank.labels.copy_(bank.label_images(images.flatten(0, 1), transform).view(bank.labels.shape))
            if not bank.labels.isfinite().all():
                raise ValueError("The teacher's logits are not finite in half precision: its training failed.")
        return bank.eval()

    def label_images(self, images: Tensor, transform: InputTransform) -> Tensor:
        """Return the teacher's logits of any images; see `Generator.label_images`."""
        if not self.has_soft_labels:
            return super().label_images(images, transform)
        teacher = deepcopy(self.labeller).float().to(images.device)
        return predict(teacher, images, transform).half()
