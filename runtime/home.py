"""The folder for files that outlive a run: seedlings, the teacher cache, the lock of the GPU.

Other users of the machine have no access: the folder and everything made in it is for its owner alone.
"""

import os
import stat
from pathlib import Path

PRIVATE = 0o700
PRIVATE_UMASK = 0o077


def home() -> Path:
    """Returns `$PIPPIN_HOME`, or ~/.pippin; does not create it."""
    return Path(os.environ.get("PIPPIN_HOME") or "~/.pippin").expanduser().absolute()


def private_folder(path: Path) -> Path:
    """Makes the folder and missing folders above it, for their owner alone, and returns the folder."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(mode=PRIVATE, exist_ok=True)
    return missing[0] if missing else path


def is_private(path: Path) -> bool:
    """Returns whether the path is a folder, no link, that belongs to this user and is closed to others."""
    found = os.lstat(path)
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and stat.S_IMODE(found.st_mode) == PRIVATE
    )


def tighten_home() -> str:
    """Closes ~/.pippin to other users if it is open to them; returns a sentence for the user, or "".

    A folder that $PIPPIN_HOME names is left as it is, because it may hold other files too.
    """
    return "" if os.environ.get("PIPPIN_HOME") else tighten(home())


def tighten(folder: Path) -> str:
    """Closes a folder of this user to others if it is open; returns a sentence for the user, or ""."""
    try:
        found = folder.stat()
    except OSError:
        return ""
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not mode & PRIVATE_UMASK:
        return ""
    folder.chmod(mode & ~PRIVATE_UMASK)
    return f"{folder} was open to other users (mode {mode:o}); it is its owner's alone now"
