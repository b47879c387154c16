"""Endless stream of generated images, new in each epoch and resumable."""

import itertools
import math
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_ipc, log_plain_seed
from hf_gdd.utils.random import check_seed, derive_seed

DEFAULT_BATCH, MAX_WORKERS = 512, 1024


class DistilledStream(IterableDataset):
    """Stream batches of images, new in each epoch, made on the generator's device.

    Epoch e consists of the images e * ipc ... (e + 1) * ipc - 1 of every class, shuffled; epoch 0 is the materialized
    set. Each pass over the stream is the next epoch. The state is (epoch, position), so a stream resumes exactly.

    With seed 0 the first epochs have the distilled images, if the generator has any, and the others plain draws;
    `sampling.distilled=False` gives plain draws alone.

    It yields whole batches, so a `DataLoader` around it needs `batch_size=None`. Worker processes share the batches of
    an epoch, which needs a generator on the CPU. They run ahead of the training, so the training must count the batches
    it took, and resume with `load_state_dict({"epoch": e, "position": batches_taken})`.

    Args:
        generator: makes the images.
        ipc: images per class in one epoch.
        seed: seed of the images and their order.
        batch_size: largest number of images in a batch; an epoch is split into batches of nearly equal size.
        sampling: overrides the generator's own.

    Example:
        stream = DistilledStream(generator, ipc=100, batch_size=64)
        for epoch in range(2):
            for batch in stream:
                images, labels = batch["image"], batch["label"]  # uint8 [B, C, H, W] and int64 [B]
                logits = batch.get("soft_label")  # float16 [B, K] if the generator has a teacher
        state = stream.state_dict()  # {"epoch": 2, "position": 0}

    Raises:
        ValueError: the generator holds a limited number of images, or ipc, seed or batch_size is out of range.

    """

    def __init__(
        self, generator: Generator, ipc: int, seed: int = 0, batch_size: int | None = None, sampling: Any = None
    ) -> None:
        check_ipc(generator, ipc)
        check_seed(seed)
        if generator.max_ipc is not None:
            raise ValueError(f"This generator holds {generator.max_ipc} images per class, no stream: materialize it.")
        self.batch_size = DEFAULT_BATCH if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be positive.")
        self.generator, self.ipc, self.seed = generator, ipc, seed
        self.sampling = generator.choose_sampling(sampling)
        log_plain_seed(generator, seed, self.sampling)
        self.images_per_epoch = generator.num_classes * ipc
        self.rank, self.world_size = 0, 1
        self._place = torch.zeros(2, dtype=torch.int64)  # epoch and position
        self._done = torch.zeros(MAX_WORKERS, dtype=torch.int64)  # epochs that each worker process has finished
        self._begun = torch.zeros((), dtype=torch.bool)  # whether any worker process has begun
        self._share_memory()

    def _share_memory(self) -> None:
        """Share the counters with worker processes, so that epochs go on after theirs."""
        for name in ("_place", "_done", "_begun"):
            setattr(self, name, getattr(self, name).clone().share_memory_())

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that each process takes in an epoch; none is empty."""
        wanted = math.ceil(self.images_per_epoch / (self.batch_size * self.world_size))
        return min(wanted, self.images_per_epoch // self.world_size)

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return max(int(self._place[0]), int(self._done.max()))

    @property
    def position(self) -> int:
        """Number of the next batch within its epoch."""
        return int(self._place[1]) if int(self._place[0]) == self.epoch else 0

    def split_by_node(self, rank: int, world_size: int) -> "DistilledStream":
        """Return the part of one process.

        In each step the processes together see `world_size` batches. Do not let Accelerate's `prepare` divide the
        stream a second time.

        Args:
            rank: number of the process.
            world_size: number of processes.

        Raises:
            ValueError: an epoch has fewer images than there are processes, or the rank is out of range.

        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must lie in 0..{world_size - 1}.")
        if self.images_per_epoch < world_size:
            raise ValueError(f"{self.images_per_epoch} images an epoch are too few for {world_size} processes.")
        part = copy(self)
        part.rank, part.world_size = rank, world_size
        part._share_memory()
        return part

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of this epoch as dicts.

        Their keys are `image` uint8 [B, C, H, W], `label` int64 [B] and, with a teacher, `soft_label` float16 [B, K].
        """
        worker, soft = get_worker_info(), self.generator.has_soft_labels
        if worker is None:
            batches = self.batches(self.batches_per_epoch - self.position, soft)
        elif self.generator.device.type == "cpu":
            batches = self._worker_batches(worker.id, worker.num_workers, soft)
        else:
            raise RuntimeError("Worker processes cannot share a GPU, and need not: use num_workers=0.")
        for batch in batches:
            yield dict(zip(("image", "label", "soft_label")[: len(batch)], batch, strict=True))

    def _worker_batches(self, worker: int, workers: int, soft: bool) -> Iterator[tuple[Tensor, ...]]:
        """Yield every `workers`-th batch of the rest of this epoch."""
        self._begun.fill_(True)
        # The slowest worker decides which epoch this is: a fast one may finish before another has begun.
        epoch = max(int(self._place[0]), int(self._done[:workers].min()))
        first = int(self._place[1]) if epoch == int(self._place[0]) else 0
        places = itertools.islice(self._places(epoch, first), worker, self.batches_per_epoch - first, workers)
        for _, batch in self._make(places, soft):
            yield batch
        self._done[worker] = epoch + 1
        if int(self._done[:workers].min()) > epoch:
            self._done.fill_(epoch + 1)  # also for the workers that a later loader may have in addition

    def batches(self, count: int, soft: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """Yield the next `count` batches of images and labels, across epochs.

        Args:
            count: number of batches.
            soft: yield a third tensor with each, the teacher's logits float16 [B, K].

        Raises:
            ValueError: there are no logits, for the generator has no teacher.

        """
        if soft and not self.generator.has_soft_labels:
            raise ValueError("This generator has no teacher, so its stream has no soft labels: leave soft out.")
        places = itertools.islice(self._places(self.epoch, self.position), count)
        for (epoch, position), batch in self._make(places, soft):
            self._go_to(*((epoch + 1, 0) if position + 1 == self.batches_per_epoch else (epoch, position + 1)))
            yield batch

    def _make(
        self, places: Iterator[tuple[tuple[int, int], Tensor]], soft: bool
    ) -> Iterator[tuple[tuple[int, int], Sequence[Tensor]]]:
        """Yield each place with its images, labels and, if `soft`, logits.

        Small batches are made together.
        """
        ahead = max(1, DEFAULT_BATCH * self.world_size * self.batches_per_epoch // self.images_per_epoch)
        while plan := list(itertools.islice(places, ahead)):
            rows = [batch for _, batch in plan]
            labels, indices = torch.cat(rows, dim=1)
            images = self.generator.sample(labels, indices, self.seed, self.sampling)
            columns = [images, labels.to(images.device)]
            if soft:
                columns.append(self.generator.soft_labels(labels, indices, self.seed, self.sampling, images=images))
            sizes = [batch.shape[1] for batch in rows]
            batches = zip(*(column.split(sizes) for column in columns), strict=True)
            yield from ((place, batch) for (place, _), batch in zip(plan, batches, strict=True))

    def _places(self, first: int, position: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Yield (epoch, position) and the batch's labels and indices [2, B], endlessly."""
        for epoch in itertools.count(first):
            rng = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(self.images_per_epoch, generator=rng)
            rows = torch.stack([order // self.ipc, epoch * self.ipc + order % self.ipc])
            batches = rows.tensor_split(self.batches_per_epoch, dim=1)
            for i in range(position, self.batches_per_epoch):
                yield (epoch, i), batches[i].tensor_split(self.world_size, dim=1)[self.rank]
            position = 0

    def _go_to(self, epoch: int, position: int) -> None:
        self._place.copy_(torch.tensor([epoch, position]))
        self._done.zero_()
        self._begun.zero_()

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and position of the next batch.

        Raises:
            RuntimeError: worker processes made batches; the stream cannot know how many of them were taken.

        """
        if self._done.any() or self._begun:
            raise RuntimeError(
                "The workers of a DataLoader run ahead of the training, so only it knows its place: save "
                "{'epoch': e, 'position': batches taken} yourself, for load_state_dict."
            )
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._go_to(state["epoch"], state["position"])
