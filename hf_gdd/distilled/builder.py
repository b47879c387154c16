"""Back from a generator to training data: a cached `datasets` data set of any size, or an endless stream."""

import math
import os
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
from tqdm.auto import tqdm

from hf_gdd.data.image_tensors import features
from hf_gdd.distilled.shards import PART, ShardStore, ShardWriter
from hf_gdd.distilled.stream import DEFAULT_BATCH, DistilledStream
from hf_gdd.generators.auto import AutoGenerator
from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_ipc
from hf_gdd.utils.device import launched, own_device
from hf_gdd.utils.io import disk_full
from hf_gdd.utils.random import check_seed

# Raise it when equal inputs begin to give other pixels: old caches are then left behind.
PIXEL_VERSION = "1.0.0"


@dataclass
class DistilledConfig(datasets.BuilderConfig):
    """Identity of a materialized set, and the means of making it.

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
            sampling=sampling.cache_key,
            generator=generator,
            batch_size=batch_size,
        )
        self.sampling = sampling
        self.workers, self.kept = 1, False

    @property
    def making(self) -> ShardWriter:
        """What makes the set, by as many workers as `download_and_prepare` was told."""
        config = self.config
        size = min(PART, math.ceil(config.generator.num_classes * config.ipc / self.workers))
        files = ShardStore(self._parts_folder / f"{config.generator.device.type}-torch{torch.__version__}")
        return ShardWriter(
            config.generator,
            config.ipc,
            config.seed,
            self.sampling,
            config.batch_size,
            part_size=size,
            schema=self.info.features.arrow_schema,
            files=files if self.kept else None,
        )

    @property
    def _parts_folder(self) -> Path:
        return Path(f"{self.cache_dir}.parts")

    def download_and_prepare(
        self, output_dir: str | None = None, *args: Any, num_proc: int | None = None, **kwargs: Any
    ) -> None:
        """Make the set, unless it is in the cache; see `datasets.DatasetBuilder.download_and_prepare`.

        A set of more than one part keeps those it finished beside its place in the cache until it is complete, which
        takes that much disk space once more, so that a run that was killed goes on where it was. The processes of a
        launcher (`torchrun`, `accelerate launch`) divide the parts among them, instead of `num_proc`, and all have the
        one set. On several machines they do if `cache_dir` is shared; else each machine makes the set for itself.

        Args:
            output_dir: where to write the set; its place in the cache if None.
            args: as there.
            num_proc: processes to fork, each for a part of the images.
            kwargs: as there.

        """
        rank, processes = launched()
        num_proc = num_proc if processes == 1 else None
        self.workers = max(num_proc or 1, processes)
        several = processes > 1 or self.making.total > PART  # one part alone is soon made again
        self.kept = several and not datasets.utils.file_utils.is_remote_url(self.cache_dir)
        complete = Path(self.cache_dir) / datasets.config.DATASET_INFO_FILENAME
        if processes > 1 and self.kept and output_dir is None and not complete.is_file():
            with tqdm(
                desc="images of this process", unit="img", delay=2, **({} if rank == 0 else {"disable": True})
            ) as bar:
                for count in self.making.share(complete.is_file):
                    bar.update(count)
        try:
            super().download_and_prepare(output_dir, *args, num_proc=num_proc, **kwargs)
        except DatasetGenerationError as error:
            if not disk_full(error.__cause__):
                raise
            told = f"{error.__cause__.strerror}: the set is made in {self.cache_dir}; free some space, and the same"
            raise OSError(error.__cause__.errno, f"{told} call goes on, or choose another cache (HF_HOME)") from error
        shutil.rmtree(self._parts_folder, ignore_errors=True)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=_features(self.config.generator), version=self.VERSION)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if self._output_dir.endswith(".incomplete"):  # a run that was killed may have left other files there
            for left in Path(self._output_dir).iterdir():
                left.unlink()
        starts = [rows.start for rows in self.making.parts]  # a list is what num_proc divides
        split = datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"starts": starts})
        split.split_info.num_examples = self.making.total  # for the progress bar
        return [split]

    def _generate_tables(self, starts: list[int]) -> Iterator[tuple[Key, pa.Table]]:
        forked = multiprocess.parent_process() is not None
        if forked:  # OpenMP threads do not survive a fork: more than one would hang
            torch.set_num_threads(1)
        making = self.making
        tables = making.tables(map(making.part, starts), threads=1 if forked else None)
        for number, table in enumerate(tables):
            yield Key(0, number), table


def _features(generator: Generator) -> datasets.Features:
    return features(generator.class_names, soft=generator.has_soft_labels)


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

    A run that was killed goes on where it was when it is given again, and the processes of a launcher divide the work;
    see `GenerativeDistilledDataset.download_and_prepare`.

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
        device: where images are made; CUDA if there is one, for a generator loaded here; under a launcher, the GPU of
            each process.
        batch_size: images made at a time, 512 at most, or the stream's batch; changes no pixel.
        num_proc: processes that make the set, each a part of the images; CPU only.

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
    batch_size = DEFAULT_BATCH if batch_size is None else batch_size
    builder = GenerativeDistilledDataset(
        generator, ipc, seed, sampling=sampling, cache_dir=cache_dir, batch_size=batch_size
    )
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)


def write_parquet(data: datasets.Dataset, path: Path) -> None:
    """Write a set whole or not at all.

    Raises:
        OSError: it cannot be written.

    """
    part = path.with_name(path.name + ".part")
    try:
        data.to_parquet(part)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
