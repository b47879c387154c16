"""Back from a generator to training data: a cached `datasets` data set of any size, or an endless stream."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import multiprocess
import pyarrow as pa
import torch
from datasets.builder import Key
from torch import Tensor

from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator
from hf_gdd.images import encode_png, features

# Raise it when equal inputs begin to give other pixels: old caches are then left behind.
PIXEL_VERSION = "1.0.0"
DEFAULT_BATCH = 512


def check_ipc(generator: Generator, ipc: int) -> None:
    """Refuse a number of images per class that cannot be made.

    Raises:
        ValueError: it is under 1, or above what the generator holds.

    """
    if ipc < 1:
        raise ValueError(f"ipc is {ipc}; ask for at least 1 image per class.")
    if generator.max_ipc is not None and ipc > generator.max_ipc:
        raise ValueError(f"ipc is {ipc}, but this generator holds {generator.max_ipc} images per class: ask for fewer.")


def check_seed(seed: int) -> None:
    """Refuse a seed that the noise cannot take.

    Raises:
        ValueError: it lies outside [0, 2**63).

    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2**63).")


@dataclass
class DistilledConfig(datasets.BuilderConfig):
    """Identity of a materialised set, and the means of making it.

    Attributes:
        fingerprint: of the generator.
        ipc: images per class.
        seed: of the noise.
        sampling: what else changes pixels, as text.
        generator: makes the images; no part of the identity.
        batch_size: images made at a time; no part of the identity.

    """

    fingerprint: str = ""
    ipc: int = 0
    seed: int = 0
    sampling: str = ""
    generator: Any = field(default=None, repr=False, compare=False)
    batch_size: int = DEFAULT_BATCH

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Name of the cache folder: only what decides the pixels."""
        digest = datasets.fingerprint.Hasher.hash([self.fingerprint, self.sampling, list(self.generator.class_names)])
        return f"ipc{self.ipc}-seed{self.seed}-{digest}"


class GenerativeDistilledDataset(datasets.ArrowBasedBuilder):
    """Builder of exactly `ipc` images of every class, class after class, in the order of their index.

    Image i of a class does not depend on `ipc`, so a smaller set is the beginning of a larger one, class by class.
    """

    BUILDER_CONFIG_CLASS = DistilledConfig
    VERSION = datasets.Version(PIXEL_VERSION)

    def __init__(
        self,
        generator: Generator,
        ipc: int,
        seed: int = 0,
        *,
        sampling: Any = None,
        cache_dir: str | None = None,
        batch_size: int = DEFAULT_BATCH,
    ) -> None:
        check_ipc(generator, ipc)
        check_seed(seed)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be positive.")
        sampling = sampling or generator.sampling
        super().__init__(
            cache_dir=cache_dir,
            dataset_name="hf_gdd",
            config_name="default",
            hash=PIXEL_VERSION,
            fingerprint=generator.fingerprint,
            ipc=ipc,
            seed=0 if generator.max_ipc is not None else seed,
            sampling=repr(sampling),
            generator=generator,
            batch_size=batch_size,
        )
        self.sampling = sampling

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=_features(self.config.generator), version=self.VERSION)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        classes = list(range(self.config.generator.num_classes))  # a list is what num_proc divides
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"classes": classes})]

    def _generate_tables(self, classes: list[int]) -> Iterator[tuple[Key, pa.Table]]:
        config, schema = self.config, self.info.features.arrow_schema
        if multiprocess.parent_process() is not None:  # OpenMP threads do not survive a fork: more than one would hang
            torch.set_num_threads(1)
        labels = torch.tensor(classes).repeat_interleave(config.ipc)
        indices = torch.arange(config.ipc).repeat(len(classes))
        batches = zip(labels.split(config.batch_size), indices.split(config.batch_size), strict=True)
        for number, (label, index) in enumerate(batches):
            images = config.generator.sample(label, index, config.seed, self.sampling).cpu()
            soft = config.generator.soft_labels(label, index)
            columns = {"image": [{"bytes": encode_png(image), "path": None} for image in images]}
            columns |= {"label": label.tolist()} | ({} if soft is None else {"soft_label": list(soft.cpu().numpy())})
            yield Key(classes[0], number), pa.table(columns, schema=schema)


def _features(generator: Generator) -> datasets.Features:
    columns = features(generator.class_names)
    if generator.soft_labels(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)) is not None:
        columns["soft_label"] = datasets.List(datasets.Value("float16"), length=generator.num_classes)
    return columns


class DistilledStream(torch.utils.data.IterableDataset):
    """Fresh images every epoch, made on the generator's device.

    Epoch e holds the images e * ipc ... (e + 1) * ipc - 1 of every class, shuffled; epoch 0 is the materialised set.
    Each pass over the stream is the next epoch. Where it stands is (epoch, position), so it resumes exactly.

    Args:
        generator: makes the images.
        ipc: images per class in one epoch.
        seed: of noise and order.
        batch_size: at most this many images a batch; an epoch is split into batches of nearly equal size.
        sampling: overrides the generator's own.

    Raises:
        ValueError: the generator holds a limited number of images, or ipc or batch_size is under 1.

    """

    def __init__(
        self,
        generator: Generator,
        ipc: int,
        seed: int = 0,
        batch_size: int | None = None,
        sampling: Any = None,
    ) -> None:
        check_ipc(generator, ipc)
        check_seed(seed)
        if generator.max_ipc is not None:
            raise ValueError(f"This generator holds {generator.max_ipc} images per class, no stream: materialise it.")
        batch_size = DEFAULT_BATCH if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be positive.")
        self.generator, self.ipc, self.seed, self.sampling = generator, ipc, seed, sampling
        self.images_per_epoch = generator.num_classes * ipc
        self.batches_per_epoch = math.ceil(self.images_per_epoch / batch_size)
        self.epoch, self.position = 0, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The rest of this epoch: dicts of `image` uint8 [B, C, H, W] and `label` int64 [B], on the device."""
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("A DistilledStream already makes batches on its device: use num_workers=0.")
        for images, labels in self.batches(self.batches_per_epoch - self.position):
            yield {"image": images, "label": labels}

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The next `count` batches, across epochs. Small ones are made many at a time, whatever epoch they are of."""
        ahead = max(1, DEFAULT_BATCH * self.batches_per_epoch // self.images_per_epoch)
        places = itertools.islice(self._places(), count)
        while plan := list(itertools.islice(places, ahead)):
            rows = [batch for _, batch in plan]
            labels, indices = torch.cat(rows, dim=1)
            images = self.generator.sample(labels, indices, self.seed, self.sampling)
            sizes = [batch.shape[1] for batch in rows]
            made = zip(images.split(sizes), labels.to(images.device).split(sizes), strict=True)
            for ((epoch, position), _), batch in zip(plan, made, strict=True):
                last = position + 1 == self.batches_per_epoch
                self.epoch, self.position = (epoch + 1, 0) if last else (epoch, position + 1)
                yield batch

    def _places(self) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """From here on, for ever: (epoch, position) and the labels and indices [2, B] of the batch there."""
        position = self.position
        for epoch in itertools.count(self.epoch):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(self.images_per_epoch, generator=generator)
            rows = torch.stack([order // self.ipc, epoch * self.ipc + order % self.ipc])
            batches = rows.tensor_split(self.batches_per_epoch, dim=1)
            yield from (((epoch, i), batches[i]) for i in range(position, self.batches_per_epoch))
            position = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that was next."""
        self.epoch, self.position = state["epoch"], state["position"]


def load_distilled_dataset(
    generator: Generator | str | Path,
    *,
    ipc: int,
    seed: int = 0,
    split: str = "train",
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    streaming: bool = False,
    sampling: Any = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    num_proc: int | None = None,
) -> datasets.Dataset | DistilledStream:
    """Turn a generator into training data, in the manner of `datasets.load_dataset`.

    Args:
        generator: a generator, or the folder or Hub repo id of one.
        ipc: images per class; with `streaming`, in each epoch.
        seed: another seed gives other images.
        split: `train`, or a part of it such as `train[:50%]`.
        revision: branch, tag or commit of the repo.
        subfolder: where in the folder or repo the generator lies.
        token: for private repos.
        cache_dir: where the set is kept; that of `datasets` if None.
        streaming: return a `DistilledStream` of fresh images each epoch rather than a fixed set.
        sampling: overrides the generator's own.
        device: where images are made; CUDA if there is one, for a generator loaded here.
        batch_size: images made at a time, or the stream's batch; changes no pixel.
        num_proc: processes that make the set, each a part of the classes; CPU only.

    Returns:
        A `datasets.Dataset` of `image` and `label` (and `soft_label` if the generator has any) with exactly `ipc` rows
        for every class, from the cache if it was made before; or the stream.

    Raises:
        LoadError: the generator cannot be loaded.
        ValueError: ipc, seed, split or num_proc do not fit.

    """
    if not hasattr(generator, "sample"):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        generator = AutoGenerator.from_pretrained(
            generator, revision=revision, subfolder=subfolder, token=token, device=device
        )
    if streaming:
        return DistilledStream(generator, ipc, seed, batch_size, sampling)
    if num_proc is not None and num_proc > 1 and generator.device.type != "cpu":
        raise ValueError("num_proc needs a generator on the CPU: forked processes cannot share a GPU.")
    batch_size = DEFAULT_BATCH if batch_size is None else batch_size
    builder = GenerativeDistilledDataset(
        generator, ipc, seed, sampling=sampling, cache_dir=cache_dir, batch_size=batch_size
    )
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)
