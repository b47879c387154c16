"""Fresh images every epoch, for as long as a training lasts."""

import itertools
import math
from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hf_gdd.generators.base import Generator
from hf_gdd.generators.checks import check_ipc
from hf_gdd.utils.random import check_seed, derive

DEFAULT_BATCH, MAX_WORKERS = 512, 1024


class DistilledStream(IterableDataset):
    """Fresh images every epoch, made on the generator's device.

    Epoch e holds the images e * ipc ... (e + 1) * ipc - 1 of every class, shuffled; epoch 0 is the materialized set.
    Each pass over the stream is the next epoch. Where it stands is (epoch, position), so it resumes exactly.

    It makes whole batches: give it to a `DataLoader` with `batch_size=None`, or none. Worker processes divide the
    batches of an epoch among them, which only a generator on the CPU allows. They run ahead of the training, so it is
    for the training to count what it took: `load_state_dict({"epoch": e, "position": batches_taken})`.

    Args:
        generator: makes the images.
        ipc: images per class in one epoch.
        seed: of noise and order.
        batch_size: at most this many images a batch; an epoch is split into batches of nearly equal size.
        sampling: overrides the generator's own.

    Raises:
        ValueError: the generator holds a limited number of images, or ipc, seed or batch_size is out of range.

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
            raise ValueError(f"This generator holds {generator.max_ipc} images per class, no stream: materialize it.")
        self.batch_size = DEFAULT_BATCH if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be positive.")
        self.generator, self.ipc, self.seed, self.sampling = generator, ipc, seed, sampling
        self.images_per_epoch = generator.num_classes * ipc
        self.rank, self.world_size = 0, 1
        self._place = torch.zeros(2, dtype=torch.int64)  # epoch and position
        self._done = torch.zeros(MAX_WORKERS, dtype=torch.int64)  # epochs that each worker process has made
        self._begun = torch.zeros((), dtype=torch.bool)  # whether any has
        self._share()

    def _share(self) -> None:
        """Let worker processes tell how many epochs each has done, so that the pass after theirs is another epoch."""
        for name in ("_place", "_done", "_begun"):
            setattr(self, name, getattr(self, name).clone().share_memory_())

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each process takes in an epoch, none of them empty."""
        wanted = math.ceil(self.images_per_epoch / (self.batch_size * self.world_size))
        return min(wanted, self.images_per_epoch // self.world_size)

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return max(int(self._place[0]), int(self._done.max()))

    @property
    def position(self) -> int:
        """The number of the next batch within its epoch."""
        return int(self._place[1]) if int(self._place[0]) == self.epoch else 0

    def split_by_node(self, rank: int, world_size: int) -> "DistilledStream":
        """The part of one process: in each step, all processes together see `world_size` batches.

        Do not let Accelerate's `prepare` divide the stream a second time.

        Raises:
            ValueError: an epoch has fewer images than there are processes, or the rank is out of range.

        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must lie in 0..{world_size - 1}.")
        if self.images_per_epoch < world_size:
            raise ValueError(f"{self.images_per_epoch} images an epoch are too few for {world_size} processes.")
        part = copy(self)
        part.rank, part.world_size = rank, world_size
        part._share()
        return part

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The rest of this epoch: dicts of `image` uint8 [B, C, H, W] and `label` int64 [B], on the device."""
        worker = get_worker_info()
        if worker is None:
            made = self.batches(self.batches_per_epoch - self.position)
        elif self.generator.device.type == "cpu":
            made = self._share_of(worker.id, worker.num_workers)
        else:
            raise RuntimeError("Worker processes cannot share a GPU, and need not: use num_workers=0.")
        for images, labels in made:
            yield {"image": images, "label": labels}

    def _share_of(self, worker: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every `workers`-th batch of the rest of this epoch."""
        self._begun.fill_(True)
        # The slowest one says which epoch this is: a fast one may be through before another has begun.
        epoch = max(int(self._place[0]), int(self._done[:workers].min()))
        first = int(self._place[1]) if epoch == int(self._place[0]) else 0
        places = itertools.islice(self._places(epoch, first), worker, self.batches_per_epoch - first, workers)
        for _, images, labels in self._make(places):
            yield images, labels
        self._done[worker] = epoch + 1
        if int(self._done[:workers].min()) > epoch:
            self._done.fill_(epoch + 1)  # also for workers that a later loader may have more of

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The next `count` batches, across epochs."""
        places = itertools.islice(self._places(self.epoch, self.position), count)
        for (epoch, position), images, labels in self._make(places):
            self._stand(*((epoch + 1, 0) if position + 1 == self.batches_per_epoch else (epoch, position + 1)))
            yield images, labels

    def _make(
        self, places: Iterator[tuple[tuple[int, int], Tensor]]
    ) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
        """Images and labels of each place; small batches are made many at a time, whatever epoch they are of."""
        ahead = max(1, DEFAULT_BATCH * self.world_size * self.batches_per_epoch // self.images_per_epoch)
        while plan := list(itertools.islice(places, ahead)):
            rows = [batch for _, batch in plan]
            labels, indices = torch.cat(rows, dim=1)
            images = self.generator.sample(labels, indices, self.seed, self.sampling)
            sizes = [batch.shape[1] for batch in rows]
            made = zip(images.split(sizes), labels.to(images.device).split(sizes), strict=True)
            yield from ((place, *batch) for (place, _), batch in zip(plan, made, strict=True))

    def _places(self, first: int, position: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """From here on, for ever: (epoch, position) and the labels and indices [2, B] of the batch there."""
        for epoch in itertools.count(first):
            generator = torch.Generator().manual_seed(derive(self.seed, epoch))
            order = torch.randperm(self.images_per_epoch, generator=generator)
            rows = torch.stack([order // self.ipc, epoch * self.ipc + order % self.ipc])
            batches = rows.tensor_split(self.batches_per_epoch, dim=1)
            for i in range(position, self.batches_per_epoch):
                yield (epoch, i), batches[i].tensor_split(self.world_size, dim=1)[self.rank]
            position = 0

    def _stand(self, epoch: int, position: int) -> None:
        self._place.copy_(torch.tensor([epoch, position]))
        self._done.zero_()
        self._begun.zero_()

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self._stand(epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch.

        Raises:
            RuntimeError: worker processes made batches, and how many of them were taken they cannot know.

        """
        if self._done.any() or self._begun:
            raise RuntimeError(
                "The workers of a DataLoader run ahead of the training, so only it knows its place: save "
                "{'epoch': e, 'position': batches taken} yourself, for load_state_dict."
            )
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that was next."""
        self._stand(state["epoch"], state["position"])
