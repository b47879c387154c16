"""Bank of stored images, with a teacher's soft labels, as a generator."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from hf_gdd.classifiers.networks import build_network
from hf_gdd.data.normalization import InputTransform
from hf_gdd.generators.checks import check_record, check_request
from hf_gdd.generators.pretrained import GeneratorModel, PretrainedGenerator
from hf_gdd.generators.sampling import StoredSampling
from hf_gdd.generators.teacher import Teacher
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
        teacher: network, accuracy and `zca` of the teacher that gave the soft labels; None for hard labels alone. A
            bank of format 1 has only the network here, and the teacher's weights in its own file.
        zca: True if the teacher of a bank of format 1 sees whitened images.

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
        teacher: dict[str, Any] | str | None = None,
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
        if isinstance(teacher, str):  # `labeller` is the name of these tensors in banks of format 1
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
    def distilled_ipc(self) -> int:
        """Number of distilled images of every class: all."""
        return self.config.ipc

    @property
    def has_soft_labels(self) -> bool:
        """True if the images have a teacher's logits."""
        return self.config.teacher is not None

    @property
    def teacher(self) -> Teacher | None:
        """Network that gave the soft labels; None for hard labels alone.

        A bank of format 1 holds it among its weights.
        """
        if super().teacher is None and isinstance(self.config.teacher, str):
            record = {name: self.config[name] for name in ("class_names", "image_shape", "mean", "std", "zca")}
            teacher = Teacher(self.config.teacher, **record).to(self.device)
            teacher.classifier.load_state_dict(self.labeller.state_dict())
            self.__dict__["_teacher"] = teacher
        return super().teacher

    @teacher.setter
    def teacher(self, teacher: Teacher | None) -> None:
        if teacher is not None:
            self.check_teacher(teacher)
        if self.has_soft_labels != (self.teacher is None and teacher is not None):
            raise ValueError("The labels of a bank are stored: pass its teacher to ImageBank.from_images.")
        PretrainedGenerator.teacher.fset(self, teacher)

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise ValueError unless a teacher has the classes and the shape of the images."""
        teacher.check_fits(self)

    def take_present_layout(self) -> None:
        """Make the teacher a part of its own."""
        if isinstance(self.config.teacher, str):
            self.register_to_config(teacher=self.teacher.record)
            del self.labeller

    def stored_parts(self, ipc: int) -> dict[str, int]:
        """Return the bytes of images with their labels, and of the teacher."""
        parts = super().stored_parts(ipc)
        if isinstance(self.config.teacher, str):
            parts["generator"] -= parts["teacher"]
        return parts

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.images.device

    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Return the stored images, whatever the seed; see `Generator.sample`."""
        check_request(self, labels, indices)
        self.choose_sampling(sampling)
        return self.images[labels.to(self.device), indices.to(self.device)]

    def choose_sampling(self, sampling: Any = None) -> StoredSampling:
        """Return the only settings; see `Generator.choose_sampling`."""
        if not isinstance(sampling, (StoredSampling, type(None))):
            raise ValueError(f"The images of this generator are stored: no {sampling!r} changes them.")
        return self.sampling

    def soft_labels(
        self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None, *, images: Tensor | None = None
    ) -> Tensor | None:
        """Return the stored logits, float16 [B, K]; None if labels are hard."""
        check_request(self, labels, indices)
        if not self.has_soft_labels:
            return None
        return self.labels[labels.to(self.device), indices.to(self.device)].half()

    @classmethod
    def from_images(
        cls, images: Tensor, *, teacher: Teacher | None = None, transform: InputTransform | None = None, **record: Any
    ) -> "ImageBank":
        """Make a bank of these images, with the labels of a teacher.

        Args:
            images: uint8 [K, ipc, C, H, W].
            teacher: gives the soft labels; None for hard labels alone.
            transform: input transform of a teacher that sees whitened images.
            record: other arguments of the class.

        Raises:
            ValueError: a teacher of other classes or images, or whose logits are not finite; or one that sees whitened
                images without a transform.

        """
        if teacher is not None:
            record["teacher"] = teacher.record
        bank = cls(image_shape=tuple(images.shape[2:]), ipc=images.shape[1], **record).to(images.device)
        bank.images.copy_(images)
        if teacher is not None:
            bank.teacher = teacher
            bank.labels.copy_(teacher.logits(images.flatten(0, 1), transform).view(bank.labels.shape))
            if not bank.labels.isfinite().all():
                raise ValueError("The teacher's logits are not finite in half precision: its training failed.")
        return bank.eval()
