"""Files that are whole or absent: written under a temporary name, synced, and published by one rename.

On macOS `fsync` leaves data in the drive's cache; only F_FULLFSYNC makes it survive a power cut.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime import failpoints
from runtime.errors import RunFailed

RESERVE_BYTES = 64 << 20
"""Free space in bytes for logs and small files, in addition to a write's own size."""
PRIVATE_FILE, ORDINARY_FILE = 0o600, 0o666
"""Modes of a file that only its owner can read, and of a file that a user asked for."""
GO_ON = "a run with pippin resume, make-data with the same command"

_numbers = itertools.count()
"""Numbers for temporary names, since a signal's handler may write the same file during a write."""
_unsure: set[tuple[int, int]] = set()
"""Device and inode of files whose sync failed: the kernel would wrongly report the next sync as a success."""


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's list of names, survive a power cut.

    Raises OSError if the sync fails, and for every later sync of that file in this process; the file must
    then be written again under a new name.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        inode = (status.st_dev, status.st_ino)
        if inode in _unsure:
            raise OSError(errno.EIO, "an earlier sync of it failed", str(path))
        try:
            _flush(descriptor)
        except OSError:
            _unsure.add(inode)
            raise
    finally:
        os.close(descriptor)


def write_file(
    path: Path, content: bytes, *, durable: bool = True, mode: int = PRIVATE_FILE
) -> None:
    """Replaces a file in one step, so that a reader sees the old content or the new, never a fragment.

    Only its owner can read the file unless `mode`, which the umask restricts, allows more.
    """
    aside = path.with_name(f".{path.name}.{next(_numbers)}.{os.getpid()}")
    with _cleared_on_failure(aside), full_disk_explained(path, len(content)):
        write_new(aside, content, mode)
        if durable:
            sync(aside)
            failpoints.hit("file.before_rename")
        os.replace(aside, path)
        if durable:
            failpoints.hit("file.after_rename")
            sync(path.parent)


def write_new(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Writes a file that no process reads yet."""
    failpoints.hit("disk.write")
    path.touch(mode)
    path.write_bytes(content)


def publish_folder(aside: Path, target: Path) -> None:
    """Publishes a finished folder under its name: syncs every file, renames once, syncs the parent."""
    sync_folder(aside)
    os.rename(aside, target)
    sync(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes a folder's files and their names survive a power cut."""
    for file in sorted(folder.iterdir()):
        sync(file)
    sync(folder)


def retire_folder(folder: Path) -> None:
    """Deletes a published folder, which is renamed first so that no reader sees a half-deleted one."""
    shutil.rmtree(rename_away(folder), ignore_errors=True)


def rename_away(folder: Path) -> Path:
    """Renames a folder durably, so that its name is free, and returns its new path for deletion."""
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    sync(folder.parent)
    return trash


def clear_leftovers(folder: Path) -> None:
    """Deletes temporary files of `write_file` in processes that have ended."""
    for path in folder.glob(".*.*"):
        if path.suffix[1:].isdecimal() and not is_alive(int(path.suffix[1:])):
            path.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """Returns the path or the closest existing folder above it, whose disk and permissions count."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def full_disk_explained(path: Path, need_bytes: int | Callable[[], int] = 0) -> Iterator[None]:
    """Turns "no space left" into RunFailed with a sentence that names the path and the space to free.

    `need_bytes` is the size of the whole piece of work, or a function that returns it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(nearest_existing(path)).free
        need = RESERVE_BYTES + (need_bytes() if callable(need_bytes) else need_bytes)
        lacking = need - free if need > free else need  # a quota leaves the disk itself room
        raise RunFailed(
            f"{path}: the disk is full ({free / 1e9:.2f} GB free): free at least "
            f"{math.ceil(lacking / 1e7) / 100:.2f} GB, then go on: {GO_ON}"
        ) from None


@contextlib.contextmanager
def _cleared_on_failure(aside: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]
            return
        except OSError as error:  # a network volume has no drive cache to flush
            if error.errno not in (errno.ENOTSUP, errno.EINVAL):
                raise
    os.fsync(descriptor)


def is_alive(pid: int) -> bool:
    """Returns whether there is a process with that number, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
