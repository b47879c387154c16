"""Make a set in shards, each encoded while the next is sampled."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from hf_gdd.data.pixels import encode_png
from hf_gdd.generators.base import Generator
from hf_gdd.utils.io import atomic_write, disk_full

SHARD_SIZE = 512  # images in a shard, at most
ENCODE_SIZE = 64  # images that one thread encodes at a time
MAX_THREADS = 8  # Pillow holds Python's lock for about half of the time of a small image
_DIGEST_SIZE = hashlib.sha256().digest_size


class ShardStore:
    """Finished shards of one set, in Arrow files with a checksum.

    A file is complete or absent. Processes may share the folder: a shard's content is the same whoever makes it.

    Args:
        folder: made when the first shard is written.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, rows: range) -> Path:
        """Return the file of the shard with these rows of the set."""
        return self.folder / f"{rows.start:09}-{rows.stop:09}.arrow"

    def has(self, rows: range) -> bool:
        """Return True if the shard's file exists, damaged or not."""
        return self.path(rows).is_file()

    def read(self, rows: range) -> pa.Table | None:
        """Read a shard; None if it is absent or damaged."""
        try:
            content = memoryview(self.path(rows).read_bytes())
        except FileNotFoundError:
            return None
        digest, data = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
        return pa.ipc.open_stream(data).read_all() if hashlib.sha256(data).digest() == digest else None

    def write(self, rows: range, table: pa.Table) -> None:
        """Write a shard.

        Raises:
            OSError: the disk is full; the message says how to go on.

        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        data = sink.getvalue()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(self.path(rows)) as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
        except FileNotFoundError:  # another process has completed the set and removed its shards
            return
        except OSError as error:
            if not disk_full(error):
                raise
            raise out_of_space(error, f"{self.folder} holds the set a second time until it is complete") from error

    def claim(self, rows: range, wait: bool = False) -> FileLock | None:
        """Lock a shard until it is released or this process ends.

        Args:
            rows: rows of the shard.
            wait: wait for a process that has locked it.

        Returns:
            The lock; None if another process has it.

        """
        lock = FileLock(self.path(rows).with_suffix(".lock"))
        while not lock.is_locked:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the folder may be removed at any moment: try again
                try:
                    lock.acquire(timeout=-1 if wait else 0)
                except Timeout:
                    return None
        return lock


@dataclass(frozen=True)
class ShardWriter:
    """Make the shards of a set, class after class, in the order of the indices.

    Attributes:
        generator: makes the images.
        ipc: images per class.
        seed: seed of the images.
        sampling: sampling settings of the generator.
        shard_size: number of images in a shard.
        schema: schema of the tables.
        store: where finished shards are stored; None to store none.

    """

    generator: Generator
    ipc: int
    seed: int
    sampling: Any
    shard_size: int
    schema: pa.Schema
    store: ShardStore | None = None

    @property
    def shards(self) -> list[range]:
        """Rows of every shard."""
        return [self.shard(start) for start in range(0, self.total, self.shard_size)]

    @property
    def total(self) -> int:
        """Number of rows of the set."""
        return self.generator.num_classes * self.ipc

    def shard(self, start: int) -> range:
        """Return the rows of the shard that begins with row `start`."""
        return range(start, min(start + self.shard_size, self.total))

    def tables(self, shards: Iterable[range], threads: int | None = None) -> Iterator[pa.Table]:
        """Yield the table of each shard in order, read if stored, else made and stored.

        At most two shards are in memory, one being encoded and one being sampled.

        Args:
            shards: rows of each shard; the next is asked for before the last is yielded.
            threads: number of threads that encode; as many as cores, up to a limit, if None.

        """
        pool = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, MAX_THREADS), thread_name_prefix="encode")
        pending: deque[Callable[[], pa.Table]] = deque()
        try:
            for rows in shards:
                pending.append(self._start(rows, pool))
                if len(pending) > 1:
                    yield pending.popleft()()
            while pending:
                yield pending.popleft()()
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(self, rows: range, pool: Executor) -> Callable[[], pa.Table]:
        """Sample a shard and start to encode it; the returned function finishes it."""
        stored = self.store.read(rows) if self.store else None
        if stored is not None:
            return lambda: stored
        numbers = torch.arange(rows.start, rows.stop)
        labels, indices = numbers // self.ipc, numbers % self.ipc
        images = self.generator.sample(labels, indices, self.seed, self.sampling)
        host = _to_host(images)
        pngs = [pool.submit(_encode, host, start) for start in range(0, len(rows), ENCODE_SIZE)]
        soft = self.generator.soft_labels(labels, indices, self.seed, self.sampling, images=images)

        def finish() -> pa.Table:
            columns = {"image": [{"bytes": png, "path": None} for piece in pngs for png in piece.result()]}
            columns |= {"label": labels.tolist()} | ({} if soft is None else {"soft_label": list(soft.cpu().numpy())})
            table = pa.table(columns, schema=self.schema)
            if self.store:
                self.store.write(rows, table)
            return table

        return finish

    def share(self, done: Callable[[], bool]) -> Iterator[int]:
        """Make and store shards together with other processes, until all are stored.

        Processes claim free shards through file locks and need not know each other. The shards of a process that fails
        or is killed are free again. Only the last shard is waited for.

        Args:
            done: returns True once the set is complete, when its shards may be removed already.

        Yields:
            The number of images of each shard that this process made.

        """
        while missing := [rows for rows in self.shards if not self.store.has(rows)]:
            locks: deque[FileLock] = deque()
            worked = False
            try:
                for table in self.tables(self._claimed(missing, locks, done)):
                    worked = True
                    locks.popleft().release()
                    yield len(table)
            finally:
                for lock in locks:
                    lock.release()
            if done():
                return
            if not worked:
                # The process that has it may fail: then this one must make it. It holds no lock others could wait for.
                self.store.claim(missing[0], wait=True).release()

    def _claimed(self, missing: list[range], locks: deque[FileLock], done: Callable[[], bool]) -> Iterator[range]:
        """Yield shards that this process has locked, and add their locks to `locks`."""
        for rows in missing:
            lock = None if done() else self.store.claim(rows)
            if lock is None:
                continue
            if self.store.has(rows) or done():  # another process was faster
                lock.release()
            else:
                locks.append(lock)
                yield rows


def out_of_space(error: OSError, reason: str) -> OSError:
    """Return an error for a full disk whose message says what to do."""
    remedy = "free some space and repeat the call, which then resumes, or choose another cache (HF_HOME)"
    return OSError(error.errno, f"{error.strerror}: {reason}; {remedy}")


def _to_host(images: Tensor) -> Callable[[], np.ndarray]:
    """Start to copy images to host memory; the returned function waits for them."""
    if not images.is_cuda:
        array = images.cpu().numpy()
        return lambda: array
    host = images.to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.current_stream(images.device).record_event()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def _encode(images: Callable[[], np.ndarray], start: int) -> list[bytes]:
    return [encode_png(image) for image in images()[start : start + ENCODE_SIZE]]
