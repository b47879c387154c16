"""Turn a generator into a cached `datasets` data set, or into an endless stream."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import multiprocess
import pyarrow as pa
import torch
from datasets.builder import Key
from datasets.exceptions import DatasetGenerationError

from hf_gdd.data.decoding import dataset_features
from hf_gdd.distilled.shards import SHARD_SIZE, ShardStore, ShardWriter, out_of_space
from hf_gdd.distilled.stream import DistilledStream
from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_ipc, log_plain_seed
from hf_gdd.utils.device import launched, own_device
from hf_gdd.utils.io import atomic_write, disk_full
from hf_gdd.utils.progress import progress_bar
from hf_gdd.utils.random import check_seed

# Raise it when equal inputs begin to give other pixels: sets cached before are then no longer used.
PIXEL_VERSION = "1.0.0"


@dataclass
class DistilledConfig(datasets.BuilderConfig):
    """Identity of a materialized set, and the generator that makes it.

    Attributes:
        fingerprint: fingerprint of the generator.
        ipc: images per class.
        seed: seed of the images.
        sampling: cache key of the sampling settings.
        generator: makes the images; not part of the identity.

    """

    fingerprint: str = ""
    ipc: int = 0
    seed: int = 0
    sampling: str = ""
    generator: Any = field(default=None, repr=False, compare=False)

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Return the cache folder's name, from what decides pixels; must never change."""
        digest = datasets.fingerprint.Hasher.hash([self.fingerprint, self.sampling, list(self.generator.class_names)])
        return f"ipc{self.ipc}-seed{self.seed}-{digest}"


class GenerativeDistilledDataset(datasets.ArrowBasedBuilder):
    """Build a data set of exactly `ipc` images of every class, class after class.

    Image i of a class does not depend on `ipc`, so a smaller set is the beginning of a larger one, class by class. With
    seed 0 the first images are the distilled ones, if the generator has any.
    `load_distilled_dataset` is the short way to use it.

    Args:
        generator: makes the images.
        ipc: images per class.
        seed: another seed gives other images, unless they are stored.
        sampling: overrides the generator's own.
        cache_dir: where the set is cached; the cache of `datasets` if None.

    Example:
        builder = GenerativeDistilledDataset(generator, ipc=10)
        builder.download_and_prepare()
        train = builder.as_dataset(split="train")

    """

    BUILDER_CONFIG_CLASS = DistilledConfig
    VERSION = datasets.Version(PIXEL_VERSION)

    def __init__(
        self, generator: Generator, ipc: int, seed: int = 0, *, sampling: Any = None, cache_dir: str | None = None
    ) -> None:
        check_ipc(generator, ipc)
        check_seed(seed)
        self.sampling, self.workers, self.store_shards = generator.choose_sampling(sampling), 1, False
        log_plain_seed(generator, seed, self.sampling)
        super().__init__(
            cache_dir=cache_dir,
            dataset_name="hf_gdd",
            config_name="default",
            hash=PIXEL_VERSION,
            fingerprint=generator.fingerprint,
            ipc=ipc,
            seed=0 if generator.max_ipc is not None else seed,
            sampling=self.sampling.cache_key,
            generator=generator,
        )
        self._shard_folder = Path(f"{self.cache_dir}.parts")

    @property
    def shard_writer(self) -> ShardWriter:
        """The writer of the set's shards, divided by the number of workers."""
        config = self.config
        size = min(SHARD_SIZE, math.ceil(config.generator.num_classes * config.ipc / self.workers))
        store = ShardStore(self._shard_folder / f"{config.generator.device.type}-torch{torch.__version__}")
        return ShardWriter(
            config.generator,
            config.ipc,
            config.seed,
            self.sampling,
            shard_size=size,
            schema=self.info.features.arrow_schema,
            store=store if self.store_shards else None,
        )

    def download_and_prepare(
        self, output_dir: str | None = None, *args: Any, num_proc: int | None = None, **kwargs: Any
    ) -> None:
        """Make the set unless it is cached; see the base class for its arguments.

        A set of several shards stores finished ones beside its place in the cache until it is complete, so that an
        interrupted run resumes; this takes the set's disk space once more. The processes of a launcher (`torchrun`,
        `accelerate launch`) share the shards, instead of `num_proc`. On several machines they do so if `cache_dir` is
        on a shared disk; otherwise each machine makes the set for itself.

        Args:
            output_dir: where to write the set; its place in the cache if None.
            args: passed on.
            num_proc: number of processes to fork, each for a part of the images.
            kwargs: passed on.

        """
        rank, processes = launched()
        num_proc = num_proc if processes == 1 else None
        self.workers = max(num_proc or 1, processes)
        several = processes > 1 or self.shard_writer.total > SHARD_SIZE  # a single shard is soon made again
        self.store_shards = several and not datasets.utils.file_utils.is_remote_url(self.cache_dir)
        complete = Path(self.cache_dir) / datasets.config.DATASET_INFO_FILENAME
        if processes > 1 and self.store_shards and output_dir is None and not complete.is_file():
            with progress_bar(rank == 0, desc="images of this process", unit="img", delay=2) as bar:
                for count in self.shard_writer.share(complete.is_file):
                    bar.update(count)
        try:
            super().download_and_prepare(output_dir, *args, num_proc=num_proc, **kwargs)
        except DatasetGenerationError as error:
            if not disk_full(error.__cause__):
                raise
            raise out_of_space(error.__cause__, f"the set is made in {self.cache_dir}") from error
        shutil.rmtree(self._shard_folder, ignore_errors=True)

    def _info(self) -> datasets.DatasetInfo:
        columns = dataset_features(self.config.generator.class_names, soft=self.config.generator.has_soft_labels)
        return datasets.DatasetInfo(features=columns, version=self.VERSION)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if self._output_dir.endswith(".incomplete"):  # a killed run may have left other files there
            for stale in Path(self._output_dir).iterdir():
                stale.unlink()
        starts = [rows.start for rows in self.shard_writer.shards]  # num_proc divides a list
        split = datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"starts": starts})
        split.split_info.num_examples = self.shard_writer.total  # for the progress bar
        return [split]

    def _generate_tables(self, starts: list[int]) -> Iterator[tuple[Key, pa.Table]]:
        forked = multiprocess.parent_process() is not None
        if forked:  # OpenMP threads do not survive a fork: more than one would hang
            torch.set_num_threads(1)
        writer = self.shard_writer
        tables = writer.tables(map(writer.shard, starts), threads=1 if forked else None)
        for number, table in enumerate(tables):
            yield Key(0, number), table


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

    An interrupted run resumes when it is repeated, and the processes of a launcher share the work; see
    `GenerativeDistilledDataset.download_and_prepare`.

    Args:
        generator: a generator, or the folder or Hub repo id of one.
        ipc: images per class; with `streaming`, in each epoch.
        seed: another seed gives other images.
        split: `train`, or a part of it such as `train[:50%]`.
        revision: branch, tag or commit of the repo.
        subfolder: folder of the generator within the repo or folder.
        token: access token for private repos.
        cache_dir: where the set is cached; the cache of `datasets` if None.
        streaming: return a `DistilledStream` of fresh images each epoch rather than a fixed set.
        sampling: overrides the generator's own.
        device: device of a generator loaded here; CUDA if there is one, under a launcher each process's own GPU.
        batch_size: largest number of images in a batch of the stream, 512 by default; changes nothing in a set.
        num_proc: number of processes that make the set, each a part of the images; CPU only.

    Returns:
        A `datasets.Dataset` of `image` and `label` (and `soft_label` if the generator has any) with exactly `ipc` rows
        of every class, or the stream.

    Raises:
        LoadError: the generator cannot be loaded.
        ValueError: ipc, seed, split or num_proc do not fit.

    """
    if not split.startswith("train"):
        raise ValueError(f"There is no split {split!r}: a distilled set is 'train', or a part such as 'train[:50%]'.")
    if streaming and (split, num_proc) != ("train", None):
        raise ValueError("A stream is all of 'train', made as it is read: leave out split and num_proc.")
    if isinstance(generator, Generator):
        if (revision, subfolder, token) != (None, None, None):
            raise ValueError("This generator is already loaded: leave out revision, subfolder and token.")
    else:
        device = device or own_device()
        generator = AutoGenerator.from_pretrained(
            generator, revision=revision, subfolder=subfolder, token=token, device=device
        )
    if streaming:
        return DistilledStream(generator, ipc, seed, batch_size, sampling)
    if num_proc is not None and num_proc > 1 and generator.device.type != "cpu":
        raise ValueError("num_proc needs a generator on the CPU: forked processes cannot share a GPU.")
    builder = GenerativeDistilledDataset(generator, ipc, seed, sampling=sampling, cache_dir=cache_dir)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)


def write_parquet(data: datasets.Dataset, path: Path) -> None:
    """Write a set as one Parquet file, complete or not at all.

    Raises:
        OSError: its folder cannot be made, or the file cannot be written; the images stay in the cache.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            data.to_parquet(file)
    except OSError as error:
        remedy = "its images are cached: free some space or choose another folder, and repeat"
        raise OSError(error.errno, f"{path} cannot be written ({error.strerror}); {remedy}") from error
