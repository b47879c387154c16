"""Write files and folders whole or not at all, and read checkpoints safely."""

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
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

from safetensors import SafetensorError

if TYPE_CHECKING:  # it takes a second to import, and reports need no tensors
    import torch

# Age in seconds after which staging of a dead process is deleted; a process of another machine looks dead from here.
_STALE = 3600


def disk_full(error: BaseException | None) -> bool:
    """Return True if an error says that no disk space was left."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (match := re.search(r"os error (\d+)", str(error))):
        number = int(match[1])
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends; a failure removes it.

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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and primitives, whole or not at all."""
    import torch

    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's writer hides what the file said
            raise error.__context__ from None
        raise


def load_state(path: Path, device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote; runs no code from the file.

    Raises:
        ValueError: the file is absent or damaged.

    """
    import torch

    if torch.device(device).type == "cpu":
        device = "cpu"  # a launcher's process is on cpu:0, where torch cannot restore anything
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a cut zip file surfaces as any of half a dozen types
        raise ValueError(f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}).") from error


@contextmanager
def atomic_folder(target: Path, replaced: Callable[[str], bool]) -> Iterator[Path]:
    """Fill a new folder that takes the place of `target` when the block ends.

    A process killed at any moment leaves the old folder or the new one; so does a failure. Other files in `target`
    stay. A mount point, or a folder whose parent may not be written to, cannot be replaced: there the files are
    replaced one by one at the end, and a kill in that moment leaves a part of them.

    Args:
        target: the folder; made if absent. A symbolic link is followed.
        replaced: returns True for a path relative to `target` that belongs to what is written, so that an old one goes.

    Yields:
        An empty folder to write to.

    Raises:
        NotADirectoryError: `target` is a file.

    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file: choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_remains(target)
    in_place = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK | os.X_OK))
    name = f".{target.name}.{os.getpid()}.{uuid4().hex[:8]}.part"
    staging = target / name if in_place else target.with_name(name)
    staging.mkdir()
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if in_place:
            _move_files(staging, target, replaced)
        else:
            _add_other_files(staging, target, replaced)
            _exchange(staging, target)
            _sync_folder(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _add_other_files(staging: Path, target: Path, replaced: Callable[[str], bool]) -> None:
    """Put all files of the old folder into the new one that it does not replace."""
    if target.is_dir():
        shutil.copymode(target, staging)
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target)
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                (staging / name).mkdir(parents=True, exist_ok=True)
        elif not (name.suffix == ".part" or replaced(name.as_posix()) or (staging / name).exists()):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            _link(path, staging / name)
    for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
        _sync_folder(folder)


def _move_files(staging: Path, target: Path, replaced: Callable[[str], bool]) -> None:
    """Replace the files of a folder one by one; no old file is ever beside a new one."""
    new = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target)
        if not path.is_dir() and not path.is_relative_to(staging) and (name in new or replaced(name.as_posix())):
            path.unlink()
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, target / name)
    _sync_folder(target)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step where the system can; `old` may be absent."""
    here = _working_folder()
    if not old.exists():
        os.rename(new, old)
    elif not _renameat2(new, old):  # a kill between these two leaves the old folder as a spare, see `_clear_remains`
        spare = new.with_name(f"{new.name}.old")
        os.rename(old, spare)
        try:
            os.rename(new, old)
        except BaseException:
            os.rename(spare, old)
            raise
        shutil.rmtree(spare, ignore_errors=True)
    if here is not None and here.is_relative_to(old):  # this process must not stay in the folder that goes
        with suppress(OSError):
            os.chdir(here)


def _working_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


def _renameat2(a: Path, b: Path) -> bool:
    """Exchange two names by Linux's renameat2; return False where it is missing."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
    return call(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _link(source: Path, path: Path) -> None:
    """Give a file a second path, without a copy where the file system can."""
    try:
        os.link(source, path, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, path, follow_symlinks=False)


def _clear_remains(target: Path) -> None:
    """Clean up after killed writers of the same folder.

    A folder that was caught between two renames gets its name back. Old staging of dead processes is deleted.
    """
    pattern = f".{glob.escape(target.name)}.*.part*"
    for path in (*target.parent.glob(pattern), *target.glob(pattern)):
        pid = path.name.removesuffix(".old").split(".")[-3]
        if not pid.isdigit() or _alive(int(pid)):
            continue
        with suppress(OSError):  # another process may do the same
            if path.suffix == ".old" and not target.exists():
                os.rename(path, target)
            elif time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
