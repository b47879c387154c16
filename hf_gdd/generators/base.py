"""What every generator promises."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_gdd.report import Report
from hf_gdd.utils.random import check_seed

MAX_IMAGES = 100_000_000
# `ddpm` are ancestral steps, as in the papers; the others draw no noise but the first, and need fewer steps.
SCHEDULERS = ("ddim", "ddpm", "dpm++")


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
        seed: of the training, if known.
        origin: repo and commit it was loaded from, `me/generator@<sha>`, if it was.
        license: of the training data, as its card names it.

    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_ipc: int | None
    sampling: Any
    report: Report | None
    method: str
    seed: int | None
    origin: str | None
    license: str | list[str] | None

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

    def grid(self, seed: int = 0) -> Any:
        """A PIL picture of the first images of every class, a class a row."""

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


@dataclass(frozen=True)
class DiffusionSampling:
    """What changes the pixels of a diffusion generator.

    Attributes:
        guidance: weight of the condition against no condition (Ho & Salimans, 2022); 1 is the model itself. All latent
            channels are guided, as in diffusers; the public DiT code guides three of four.
        steps: of denoising.
        scheduler: `ddim`, `ddpm` (ancestral, with the learned variance if the model has one) or `dpm++`.

    """

    guidance: float = 4.0
    steps: int = 50
    scheduler: str = "ddim"

    def __post_init__(self) -> None:
        if not 1 <= self.guidance <= 100:
            raise ValueError(f"guidance is {self.guidance}; it must lie in [1, 100], 1 for none.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= 1000:
            raise ValueError(f"steps is {self.steps!r}; it must be a whole number in 1..1000.")
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"Unknown scheduler {self.scheduler!r}; choose one of {', '.join(SCHEDULERS)}.")

    def identity(self) -> dict[str, Any]:
        """The fields as primitives, for cache keys and cards."""
        return asdict(self)


@dataclass(frozen=True)
class StoredSampling:
    """What changes the pixels of stored images: nothing."""

    def identity(self) -> dict[str, Any]:
        """No fields."""
        return {}


def has_soft_labels(generator: Generator) -> bool:
    """Whether soft labels are stored with its images."""
    first = torch.zeros(1, dtype=torch.int64)
    return generator.soft_labels(first, first) is not None


def check_image_seed(generator: Generator, seed: int) -> None:
    """Refuse another seed than 0 where images are stored: they would be the same ones under another name.

    Raises:
        ValueError: it is another, or lies outside [0, 2**63).

    """
    check_seed(seed)
    if seed and generator.max_ipc is not None:
        raise ValueError(f"seed is {seed}, but the images of this generator are stored: no seed makes others.")


def changed_sampling(generator: Generator, **fields: Any) -> Any:
    """The generator's own sampling with some fields replaced; None if none are given.

    Raises:
        ValueError: this kind of generator has no such field, or a value is out of range.

    """
    fields = {name: value for name, value in fields.items() if value is not None}
    known = generator.sampling.identity()
    if unknown := sorted(fields.keys() - known.keys()):
        there = f"but {', '.join(known)}" if known else "for its images are stored"
        raise ValueError(f"This generator's sampling has no {', '.join(unknown)}, {there}.")
    return replace(generator.sampling, **fields) if fields else None


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


def check_ipc(generator: Generator, ipc: int) -> None:
    """Refuse a number of images per class that cannot be made.

    Raises:
        ValueError: it is no whole number from 1, above what the generator holds, or makes more than MAX_IMAGES in all.

    """
    if not isinstance(ipc, int) or isinstance(ipc, bool) or ipc < 1:
        raise ValueError(f"ipc is {ipc!r}; ask for a whole number of images per class, at least 1.")
    if ipc * generator.num_classes > MAX_IMAGES:
        raise ValueError(f"ipc {ipc:,} makes more than {MAX_IMAGES:,} images: ask for fewer, or take a stream.")
    if generator.max_ipc is not None and ipc > generator.max_ipc:
        raise ValueError(f"ipc is {ipc}, but this generator holds {generator.max_ipc} images per class: ask for fewer.")


def check_record(
    class_names: tuple[str, ...], image_shape: tuple[int, int, int], mean: Any, std: Any, training: Any
) -> None:
    """Refuse what a generator cannot be: its classes, its statistics and the record of its training.

    Raises:
        ValueError: class names that are not different single lines, statistics that do not fit the channels, or a
            record that is no mapping.

    """
    channels = image_shape[0]
    if channels not in (1, 3):
        raise ValueError(f"Images have 1 or 3 channels, not {channels}.")
    if not 2 <= len(class_names) <= 10_000:
        raise ValueError(f"A generator has 2 to 10,000 classes, not {len(class_names)}.")
    lines = [name for name in class_names if isinstance(name, str) and name.isprintable()]
    if isinstance(class_names, str) or len(set(lines)) < len(class_names):
        raise ValueError(f"Class names must be different strings of one line: {class_names[:5]}.")
    if len(mean) not in (1, channels) or len(std) != len(mean) or not all(map(math.isfinite, (*mean, *std))):
        raise ValueError(f"mean {mean} and std {std} must each have one finite value per channel.")
    if min(std) <= 0:
        raise ValueError(f"std {std} must be above 0.")
    if not isinstance(training or {}, Mapping):
        raise ValueError(f"training must be a mapping of settings, not {training!r}.")
