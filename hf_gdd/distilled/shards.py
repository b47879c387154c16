"""A set in the making: its images in parts, each encoded while the next is sampled, and kept until all are there."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from hf_gdd.data.pixels import encode_png
from hf_gdd.generators.base import Generator
from hf_gdd.utils.io import disk_full

PART, PIECE = 512, 64  # at most so many images in a part, and in what one thread encodes at a time
MAX_THREADS = 8  # Pillow holds Python's lock for about half of the time of a small image
_DIGEST = hashlib.sha256().digest_size


class ShardStore:
    """Finished parts of one set, each in a file that is there whole or not at all.

    Several processes may share the folder: whoever makes a part, its content is the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, rows: range) -> Path:
        """Of the part with these rows of the set."""
        return self.folder / f"{rows.start:09}-{rows.stop:09}.arrow"

    def has(self, rows: range) -> bool:
        """Whether the part is there, damaged or not."""
        return self.path(rows).is_file()

    def read(self, rows: range) -> pa.Table | None:
        """The part; None if it is absent or damaged."""
        try:
            content = memoryview(self.path(rows).read_bytes())
        except FileNotFoundError:
            return None
        digest, data = content[:_DIGEST], content[_DIGEST:]
        return pa.ipc.open_stream(data).read_all() if hashlib.sha256(data).digest() == digest else None

    def write(self, rows: range, table: pa.Table) -> None:
        """Keep the part."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        data, path = sink.getvalue(), self.path(rows)
        own = path.with_name(f"{path.name}.{uuid4().hex}")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with own.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            os.replace(own, path)
        except FileNotFoundError:  # another process has completed the set, and removed its parts
            return
        except OSError as error:
            own.unlink(missing_ok=True)
            if not disk_full(error):
                raise
            told = f"{error.strerror}: {self.folder} holds the set a second time until it is complete; free some space"
            raise OSError(
                error.errno, f"{told}, and the same call goes on, or choose another cache (HF_HOME)"
            ) from error

    def claim(self, rows: range, wait: bool = False) -> FileLock | None:
        """The right to make the part until it is released or this process ends; None if another process has it."""
        lock = FileLock(self.path(rows).with_suffix(".lock"))
        while not lock.is_locked:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # removed in the meantime, even while this process waits: try again
                try:
                    lock.acquire(timeout=-1 if wait else 0)
                except Timeout:
                    return None
        return lock


@dataclass(frozen=True)
class ShardWriter:
    """How one set is made: `ipc` images of every class, class after class, in the order of their index.

    Attributes:
        generator: makes the images.
        ipc: images per class.
        seed: of the noise.
        sampling: of the generator.
        batch_size: images sampled at a time, within a part.
        part_size: images in a part.
        schema: of its tables.
        files: where finished parts are kept; None if they are not.

    """

    generator: Generator
    ipc: int
    seed: int
    sampling: Any
    batch_size: int
    part_size: int
    schema: pa.Schema
    files: ShardStore | None = None

    @property
    def parts(self) -> list[range]:
        """The rows of every part."""
        return [self.part(start) for start in range(0, self.total, self.part_size)]

    @property
    def total(self) -> int:
        """The number of rows."""
        return self.generator.num_classes * self.ipc

    def part(self, start: int) -> range:
        """The rows of the part that begins with this one."""
        return range(start, min(start + self.part_size, self.total))

    def tables(self, parts: Iterable[range], threads: int | None = None) -> Iterator[pa.Table]:
        """The table of each part, in order: what was kept is read, all else made and kept.

        No more than two parts are held in memory, the one that is encoded and the one that is sampled.

        Args:
            parts: asked for one ahead.
            threads: that encode; as many as there are cores, to a limit, if None.

        """
        pool = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, MAX_THREADS), thread_name_prefix="encode")
        begun: deque[Callable[[], pa.Table]] = deque()
        try:
            for rows in parts:
                begun.append(self._begin(rows, pool))
                if len(begun) > 1:
                    yield begun.popleft()()
            while begun:
                yield begun.popleft()()
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, rows: range, pool: Executor) -> Callable[[], pa.Table]:
        """Sample a part and begin to encode it; the function waits for the rest and keeps it."""
        kept = self.files.read(rows) if self.files else None
        if kept is not None:
            return lambda: kept
        numbers = torch.arange(rows.start, rows.stop)
        labels, indices = numbers // self.ipc, numbers % self.ipc
        pngs: list[Future[list[bytes]]] = []
        for batch in zip(labels.split(self.batch_size), indices.split(self.batch_size), strict=True):
            images = _to_host(self.generator.sample(*batch, self.seed, self.sampling))
            pngs += [pool.submit(_encode, images, start) for start in range(0, len(batch[0]), PIECE)]
        soft = self.generator.soft_labels(labels, indices)

        def finish() -> pa.Table:
            columns = {"image": [{"bytes": png, "path": None} for piece in pngs for png in piece.result()]}
            columns |= {"label": labels.tolist()} | ({} if soft is None else {"soft_label": list(soft.cpu().numpy())})
            table = pa.table(columns, schema=self.schema)
            if self.files:
                self.files.write(rows, table)
            return table

        return finish

    def share(self, done: Callable[[], bool]) -> Iterator[int]:
        """Make and keep those parts that no other process is making, until all are there; yields images in each.

        Processes need not know of each other: each takes the next part that is free, and if one fails or is killed,
        its parts are free again. None waits for another but at the end, for the last part that is still in the making.

        Args:
            done: whether the whole set is there, so that parts may be gone already.

        """
        while missing := [rows for rows in self.parts if not self.files.has(rows)]:
            claims: deque[FileLock] = deque()
            worked = False
            try:
                for table in self.tables(self._claimed(missing, claims, done)):
                    worked = True
                    claims.popleft().release()
                    yield len(table)
            finally:
                for lock in claims:
                    lock.release()
            if done():
                return
            if not worked:
                # Whoever has it may fail: then it is for this process to make. It holds no part others could wait for.
                self.files.claim(missing[0], wait=True).release()

    def _claimed(self, missing: list[range], claims: deque[FileLock], done: Callable[[], bool]) -> Iterator[range]:
        for rows in missing:
            lock = None if done() else self.files.claim(rows)
            if lock is None:
                continue
            if self.files.has(rows) or done():  # by another process since
                lock.release()
            else:
                claims.append(lock)
                yield rows


def _to_host(images: Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy images to host memory; the function waits for them, while a GPU makes the next."""
    if not images.is_cuda:
        array = images.cpu().numpy()
        return lambda: array
    host = images.to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.current_stream(images.device).record_event()

    def arrived() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return arrived


def _encode(images: Callable[[], np.ndarray], start: int) -> list[bytes]:
    return [encode_png(image) for image in images()[start : start + PIECE]]
