"""Teacher of a generator: its logits are the soft labels of the images."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hf_gdd.classifiers.learner import accuracy, predict
from hf_gdd.classifiers.networks import build_network
from hf_gdd.data.image_tensors import MAX_SIZE, ImageTensors
from hf_gdd.data.normalization import InputTransform, Normalize, input_transform
from hf_gdd.generators.base import DEFAULT_TILE, TILE
from hf_gdd.generators.checks import check_record
from hf_gdd.hub.files import CONFIG_NAME, LoadError, check_files, check_loaded, remove_local_path
from hf_gdd.hub.loading import read_config

if TYPE_CHECKING:
    from hf_gdd.generators.base import Generator

LARGE_TILE = 64  # for images above 64 px, whose feature maps would fill the memory of most GPUs


class Teacher(ModelMixin, ConfigMixin):
    """A classifier trained on real data whose logits are soft labels.

    Its weights are stored in float16. It computes in float32 and in tiles of a fixed size, so the logits of an image
    are the same in any batch.

    Args:
        network: name of the architecture, see `hf_gdd.classifiers.NETWORK_NAMES`.
        class_names: in the order of the labels.
        image_shape: (C, H, W).
        mean: per-channel mean of the real training images, in [0, 1].
        std: per-channel standard deviation of the real training images, for pixels in [0, 1].
        zca: True if it sees whitened images, see `hf_gdd.data.normalization.ZCAWhitening`.
        accuracy: share of the real training images that it classifies correctly, in [0, 1]; None if unknown.
        training: settings of its training, as primitives.

    Example:
        teachers = Teachers("convnet3", real, Normalize(real.mean, real.std), Recipe(epochs=20))
        generator.teacher = Teacher.from_network("convnet3", teachers[0], real)
        logits = generator.soft_labels(labels, indices)  # float16 [B, K]

    """

    config_name = CONFIG_NAME

    @register_to_config
    def __init__(
        self,
        network: str,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        zca: bool = False,
        accuracy: float | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_record(class_names, image_shape, mean, std, training)
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise ValueError(f"The accuracy of the teacher is {accuracy}; it must lie in [0, 1].")
        classifier = build_network(network, len(class_names), tuple(image_shape), seed=0)
        # Not named `network`: diffusers finds config fields under their names.
        self.classifier = classifier.half().requires_grad_(False).eval()

    @classmethod
    def from_network(
        cls,
        name: str,
        network: nn.Module,
        real: ImageTensors,
        *,
        zca: bool = False,
        training: Mapping[str, Any] | None = None,
    ) -> "Teacher":
        """Make a teacher of a trained network, and measure its accuracy.

        The accuracy is that on all real training images, of the weights in half precision.

        Args:
            name: architecture of the network.
            network: trained by real images that `input_transform(real, zca)` transforms.
            real: the real training set.
            zca: True if it sees whitened images.
            training: settings of its training.

        Raises:
            ValueError: the weights are not finite in half precision: the training failed.

        """
        record = {"mean": real.mean, "std": real.std, "zca": zca, "training": dict(training or {})}
        teacher = cls(name, real.class_names, real.shape, **record)
        teacher.classifier.load_state_dict(network.state_dict())
        teacher.to(real.device)
        if not all(tensor.isfinite().all() for tensor in teacher.state_dict().values()):
            raise ValueError("The teacher's weights are not finite in half precision: its training failed.")
        share = accuracy(deepcopy(teacher.classifier).float(), real, input_transform(real, zca))
        teacher.register_to_config(accuracy=share)
        return teacher

    @property
    def record(self) -> dict[str, Any]:
        """Fields of the generator's config that describe its teacher."""
        return {name: self.config[name] for name in ("network", "accuracy", "zca")}

    @property
    def identity(self) -> list[Any]:
        """Fields that with the weights decide logits."""
        fields = [self.config.network, list(self.config.image_shape), list(self.config.class_names)]
        return [*fields, list(map(float, self.config.mean)), list(map(float, self.config.std)), self.config.zca]

    @property
    def stored_bytes(self) -> int:
        """Size of the weights and buffers."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def logits(self, images: Tensor, transform: InputTransform | None = None) -> Tensor:
        """Return the logits of images uint8 [N, C, H, W], float16 [N, K] on their device.

        Args:
            images: of the classes of the teacher or not.
            transform: input transform; that of the teacher's own record if None.

        Raises:
            ValueError: the teacher sees whitened images, and there is no transform to whiten them.

        """
        if transform is None:
            if self.config.zca:
                raise ValueError("This teacher sees whitened images: pass input_transform(real, zca=True).")
            transform = Normalize(tuple(self.config.mean), tuple(self.config.std))
        if not len(images):
            return torch.empty(0, len(self.config.class_names), dtype=torch.float16, device=images.device)
        size = LARGE_TILE if images.shape[-1] > MAX_SIZE else TILE.get(images.device.type, DEFAULT_TILE)
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % size))
        network = deepcopy(self.classifier).float().to(images.device)
        return predict(network, padded, transform, size)[: len(images)].half()

    def check_fits(self, generator: "Generator") -> None:
        """Raise ValueError unless a generator has the teacher's classes and image shape."""
        _check_fits(self.config, generator)

    def write(self, folder: Path) -> None:
        """Write config.json and safetensors into a folder, made if absent."""
        self.save_pretrained(folder)
        remove_local_path(folder)

    @classmethod
    def read(cls, folder: Path, generator: "Generator") -> "Teacher":
        """Load the teacher of a generator and check it whole.

        Raises:
            LoadError: it is absent, damaged, or of other classes or images than the generator.
            Exception: any that `PretrainedGenerator.load` turns into a `LoadError`.

        """
        if not (folder / CONFIG_NAME).is_file():
            raise LoadError(f"{folder} holds no {CONFIG_NAME}, but there must be a teacher: fetch or save it again.")
        config = read_config(folder, (cls.__name__,))
        try:
            _check_fits(config, generator)  # before its config takes memory
        except (ValueError, TypeError, LookupError) as error:
            raise LoadError(f"The teacher in {folder} does not fit: {error}") from error
        check_files(folder)
        options = {"use_safetensors": True, "output_loading_info": True, "local_files_only": True}
        teacher, info = cls.from_pretrained(folder, torch_dtype=torch.float16, **options)
        check_loaded(teacher, info, folder)
        return teacher.requires_grad_(False).eval()


def _check_fits(config: Mapping[str, Any], generator: "Generator") -> None:
    names, shape = tuple(config["class_names"]), tuple(config["image_shape"])
    if names != generator.class_names:
        raise ValueError(
            f"The teacher's classes {names[:5]} are not the generator's {generator.class_names[:5]}, in order: train a "
            "teacher on the generator's data."
        )
    if shape != generator.image_shape:
        raise ValueError(
            f"The teacher sees images {shape}, but the generator makes {generator.image_shape}: train a teacher on "
            "images of that shape."
        )
