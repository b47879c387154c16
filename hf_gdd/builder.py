"""Back from a generator to training data: a cached `datasets` data set of any size, or an endless stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import multiprocess
import pyarrow as pa
import torch
from datasets.builder import Key

from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator, check_ipc, has_soft_labels
from hf_gdd.images import features
from hf_gdd.pixels import encode_png
from hf_gdd.rng import check_seed
from hf_gdd.stream import DEFAULT_BATCH, DistilledStream

# Raise it when equal inputs begin to give other pixels: old caches are then left behind.
PIXEL_VERSION = "1.0.0"


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
    return features(generator.class_names, soft=has_soft_labels(generator))


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
    if not split.startswith("train"):
        raise ValueError(f"There is no split {split!r}: a distilled set is 'train', or a part such as 'train[:50%]'.")
    if streaming and (split, num_proc) != ("train", None):
        raise ValueError("A stream is all of 'train', made as it is read: leave out split and num_proc.")
    if hasattr(generator, "sample"):
        if (revision, subfolder, token) != (None, None, None):
            raise ValueError("This generator is already loaded: leave out revision, subfolder and token.")
    else:
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
