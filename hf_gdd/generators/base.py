"""What every generator promises, and the part of it that torch modules share."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from hf_gdd.hub import LoadError, check_loaded, read_config, resolve
from hf_gdd.images import tanh_to_uint8
from hf_gdd.pictures import image_grid
from hf_gdd.report import Report

# Images are always made this many at a time, padded if need be: kernels round differently for other batch sizes.
TILE = {"cpu": 64}
DEFAULT_TILE = 512
GRID_COLUMNS, GRID_ROWS = 10, 100

Model = TypeVar("Model", bound="GeneratorModel")


class Generator(Protocol):
    """An image for every (label, index, seed), the same in any batch, shard or process on one device type.

    Attributes:
        class_names: in the order of the labels.
        image_shape: (C, H, W).
        mean: of the real training images in unit range, per channel.
        std: of the real training images in unit range, per channel.
        max_ipc: images per class it can make; None for no limit.
        sampling: what changes pixels besides the weights; part of every identity.
        report: the evidence of what it is worth, if it was evaluated.
        method: the training method's name.
        seed: of the training.

    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_ipc: int | None
    sampling: Any
    report: Report | None
    method: str
    seed: int

    @property
    def num_classes(self) -> int:
        """The number of classes."""

    @property
    def device(self) -> torch.device:
        """Where images are made."""

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that decides pixels, but for seed and sampling."""

    @property
    def stored_bytes(self) -> int:
        """The size of the weights."""

    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Images uint8 [B, C, H, W] of int64 labels [B] and indices [B]."""

    def soft_labels(self, labels: Tensor, indices: Tensor) -> Tensor | None:
        """Class scores float16 [B, K] stored with the images, or None if labels are hard."""

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the folder that `from_pretrained` loads and that would be pushed."""


@dataclass(frozen=True)
class Sampling:
    """What changes the pixels of a one-shot generator.

    Attributes:
        truncation: factor on the noise; under 1 trades variety for typical images.

    """

    truncation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.truncation <= 2:
            raise ValueError(f"truncation is {self.truncation}; it must lie in [0, 2], 1 for the trained distribution.")

    def identity(self) -> dict[str, Any]:
        """The fields as primitives, for cache keys and cards."""
        return asdict(self)


def check_request(generator: Generator, labels: Tensor, indices: Tensor) -> None:
    """Refuse labels and indices that the generator has no image for.

    Raises:
        ValueError: a label or an index is out of range, or their shapes differ.

    """
    if labels.ndim != 1 or labels.shape != indices.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and indices {tuple(indices.shape)} must be 1-D, of one length.")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < generator.num_classes):
        raise ValueError(f"labels must lie in 0..{generator.num_classes - 1}, one for each of the classes.")
    if len(indices) and int(indices.min()) < 0:
        raise ValueError("indices must not be negative: they number the images of a class from 0.")
    if generator.max_ipc is not None and len(indices) and int(indices.max()) >= generator.max_ipc:
        raise ValueError(f"This generator holds {generator.max_ipc} images per class; ask for at most that many.")


class GeneratorModel(ModelMixin, ConfigMixin):
    """A generator that is one torch module: loading, saving and sampling in tiles. Subclasses write `make`."""

    config_name = "config.json"
    max_ipc: int | None = None
    report: Report | None = None
    sampling: Any = Sampling()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return tuple(self.config.class_names)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.config.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.config.image_shape)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the real training images in unit range, per channel."""
        return tuple(self.config.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Of the real training images in unit range, per channel."""
        return tuple(self.config.std)

    @property
    def method(self) -> str:
        """The training method's name."""
        return (self.config.training or {}).get("method", "untrained")

    @property
    def seed(self) -> int:
        """Of the training."""
        return (self.config.training or {}).get("seed", 0)

    @property
    def stored_bytes(self) -> int:
        """The size of the weights and buffers."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def fingerprint(self) -> str:
        """The sha256 of class, image shape, weights and buffers: equal fingerprints make equal images."""
        digest = hashlib.sha256(repr((type(self).__name__, self.num_classes, self.image_shape)).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def make(self, labels: Tensor, indices: Tensor, seed: int, sampling: Any) -> Tensor:
        """Images in [-1, 1], one for each entry; each may depend on its own entry alone."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, labels: Tensor, indices: Tensor, seed: int = 0, sampling: Any = None) -> Tensor:
        """Make images, pixel for pixel the same in any batch on one device type and version.

        Args:
            labels: int64 [B].
            indices: int64 [B], the number of each image within its class.
            seed: another seed gives another image for every (label, index).
            sampling: overrides `self.sampling`.

        Returns:
            uint8 [B, C, H, W] on the generator's device.

        Raises:
            ValueError: a label or an index is out of range.

        """
        check_request(self, labels, indices)
        size = TILE.get(self.device.type, DEFAULT_TILE)
        pad = (0, -len(labels) % size)
        tiles = (torch.nn.functional.pad(x, pad).to(self.device).split(size) for x in (labels, indices))
        training = self.training
        self.eval()
        try:
            images = [
                tanh_to_uint8(self.make(*tile, seed, sampling or self.sampling)) for tile in zip(*tiles, strict=True)
            ]
        finally:
            self.train(training)
        empty = torch.empty(0, *self.image_shape, dtype=torch.uint8, device=self.device)
        return torch.cat([empty, *images])[: len(labels)]

    def soft_labels(self, labels: Tensor, indices: Tensor) -> Tensor | None:
        """None: the labels of a conditional generator are hard."""
        return None

    def grid(self, seed: int = 0) -> Any:
        """A picture of the first images of each of the first 100 classes, a class a row."""
        shown = min(self.num_classes, GRID_ROWS)
        labels = torch.arange(shown).repeat_interleave(GRID_COLUMNS)
        columns = torch.arange(GRID_COLUMNS).repeat(shown)
        return image_grid(self.sample(labels, columns, seed), GRID_COLUMNS, self.class_names[:shown])

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write config.json, safetensors, grid.png and, if it was evaluated, report.json.

        Raises:
            ValueError: `push_to_hub=True`, which would push before all is written; call `push_to_hub` instead.

        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("Saving and pushing are two calls here: generator.push_to_hub(repo_id) does both.")
        super().save_pretrained(save_directory, **kwargs)
        self.grid().save(Path(save_directory) / "grid.png")
        path = Path(save_directory) / "report.json"
        path.unlink(missing_ok=True)  # that of other weights
        if self.report is not None:
            self.report.save(path)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        repo_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Model:
        """Load a generator, or refuse with the reason; never leaves a tensor unset.

        Args:
            repo_or_path: a local folder or a Hub repo id.
            revision: branch, tag or commit of the repo.
            subfolder: where in it the generator lies.
            token: for private repos.
            device: where to put it; where it was loaded if None.
            kwargs: for diffusers' `ModelMixin.from_pretrained`, such as `dtype` or `variant`.

        Raises:
            LoadError: the generator is absent, damaged, of another class or of a newer format.

        """
        folder = resolve(repo_or_path, revision=revision, subfolder=subfolder, token=token)
        read_config(folder, expected=cls.__name__)
        try:
            model, info = super().from_pretrained(folder, use_safetensors=True, output_loading_info=True, **kwargs)
            if (folder / "report.json").is_file():
                model.report = Report.load(folder / "report.json")
        except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
            raise LoadError(
                f"The generator in {folder} could not be loaded: {error} Fetch or save it again."
            ) from error
        check_loaded(model, info, folder)
        return model if device is None else model.to(device)
