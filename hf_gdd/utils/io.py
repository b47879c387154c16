"""Write files and folders whole or not at all, and read checkpoints without running code."""

import ctypes
import errno
import glob
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from safetensors import SafetensorError

_STALE = 60  # seconds after which the folder of a process that is gone is taken for its remains


def disk_full(error: BaseException | None) -> bool:
    """Return True if an error says that no disk space was left."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (match := re.search(r"os error (\d+)", str(error))):
        number = int(match[1])
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends, and is removed if it fails.

    A reader, or a process killed at any moment, sees the old file or the new one, never a part.

    Example:
        with atomic_write(folder / "report.json") as file:
            file.write(b"{}")

    """
    part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and primitives, whole or not at all."""
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's writer hides what the file said
            raise error.__context__ from None
        raise


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote; runs no code from the file.

    Raises:
        ValueError: the file is absent or damaged.

    """
    if torch.device(device).type == "cpu":
        device = "cpu"  # a launcher's process is on cpu:0, where torch cannot restore anything
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a cut zip file surfaces as any of half a dozen types
        raise ValueError(f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}).") from error


@contextmanager
def atomic_folder(target: Path, replaced: Callable[[str], bool]) -> Iterator[Path]:
    """Fill a new folder that takes the place of `target` when the block ends.

    A process killed at any moment leaves the old folder or the new one. Other files in `target` stay.

    Args:
        target: the folder; made if absent. A symbolic link is followed.
        replaced: says of a path relative to `target` whether it belongs to what is written, so that an old one goes.

    Yields:
        An empty folder to write to.

    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    staging = target.with_name(f".{target.name}.{os.getpid()}.{uuid4().hex[:8]}.part")
    staging.mkdir()
    try:
        yield staging
        for path in sorted(target.rglob("*")) if target.is_dir() else ():
            name = path.relative_to(target)
            if path.is_dir() and not path.is_symlink():
                continue
            if not replaced(name.as_posix()) and not (staging / name).exists():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                _link(path, staging / name)
        for path in staging.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        _exchange(staging, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Give two folders each other's names in one step where the system can; `old` may be absent."""
    if not old.exists():
        os.rename(new, old)
        return
    if not _renameat2(new, old):  # a kill between these two leaves the old folder beside, under another name
        spare = old.with_name(f"{new.name}.old")
        os.rename(old, spare)
        os.rename(new, old)
        shutil.rmtree(spare)


def _renameat2(a: Path, b: Path) -> bool:
    """Exchange two names by Linux's renameat2; False where there is no such call."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
    return call(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _link(source: Path, place: Path) -> None:
    """Put a file in a second place, without a copy where the file system can."""
    try:
        os.link(source, place, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, place, follow_symlinks=False)


def _remove_stale(target: Path) -> None:
    """Remove what killed processes of this machine left when they were writing the same folder."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        pid = path.name.split(".")[-3]
        if pid.isdigit() and not _alive(int(pid)) and time.time() - path.stat().st_mtime > _STALE:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
