"""Where Pippin keeps what outlives a run: seedlings, the teacher cache, the lock of the GPU.

Nobody else on the machine may look in: the folder and what is made in it is its owner's alone.
"""

import os
import stat
from pathlib import Path

PRIVATE = 0o700
PRIVATE_UMASK = 0o077


def home() -> Path:
    """`$PIPPIN_HOME`, or ~/.pippin. Not created here."""
    return Path(os.environ.get("PIPPIN_HOME") or "~/.pippin").expanduser().absolute()


def private_folder(path: Path) -> Path:
    """Returns the folder, which is made if it is not there, with every folder above it that is
    missing, for its owner alone."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(mode=PRIVATE, exist_ok=True)
    return missing[0] if missing else path


def is_private(path: Path) -> bool:
    """Whether the path is a folder itself, no link, that belongs to this user and to nobody else."""
    found = os.lstat(path)
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and stat.S_IMODE(found.st_mode) == PRIVATE
    )


def tighten_home() -> str:
    """Close ~/.pippin to others where it is open; returns the sentence to be said, or "".

    A folder that $PIPPIN_HOME names stays as it is: it may hold more than ours.
    """
    return "" if os.environ.get("PIPPIN_HOME") else tighten(home())


def tighten(folder: Path) -> str:
    """Close a folder of this user's to others where it is open; returns the sentence to be said, or ""."""
    try:
        found = folder.stat()
    except OSError:
        return ""
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not mode & PRIVATE_UMASK:
        return ""
    folder.chmod(mode & ~PRIVATE_UMASK)
    return f"{folder} was open to other users (mode {mode:o}); it is its owner's alone now"
