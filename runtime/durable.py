"""Files that are whole or absent: written aside, synced, published by one rename.

On macOS `fsync` leaves data in the drive's cache; F_FULLFSYNC is what survives a power cut.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import RunFailed


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]
                return
            except OSError as error:  # a network volume has no drive cache that we could flush
                if error.errno not in (errno.ENOTSUP, errno.EINVAL):
                    raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with full_disk_explained(path):
        try:
            aside.write_bytes(content)
            if durable:
                sync(aside)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def publish_folder(aside: Path, target: Path) -> None:
    """Publish a finished folder under its name: every file synced, one rename, the parent synced."""
    for file in sorted(aside.iterdir()):
        sync(file)
    sync(aside)
    os.rename(aside, target)
    sync(target.parent)


def retire_folder(folder: Path) -> None:
    """Delete a published folder: it is renamed away first, so that no half of it is ever seen."""
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    os.rename(folder, trash)
    sync(folder.parent)
    shutil.rmtree(trash, ignore_errors=True)


def nearest_existing(path: Path) -> Path:
    """The path, or the closest folder above it that is there: whose disk and rights will count."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn "no space left" into a sentence that says where and how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder = path if path.is_dir() else path.parent
        free = shutil.disk_usage(folder).free / 1e9
        raise RunFailed(
            f"{path}: the disk is full ({free:.2f} GB free); free some space and start again"
        ) from None
