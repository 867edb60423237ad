"""The folder of one Ray session: its sockets, logs and certificates. Its path is short, and it is private.

Ray itself opens this folder to all users (mode 0777), so the folder above keeps them out: it belongs to the
user, has mode 0700, and is no link. Under /tmp another user may have taken that folder's name;
then a folder with a random name is made.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ops import processes
from runtime.home import PRIVATE, home, is_private, private_folder

LONGEST_PATH = 41
"""The longest path. Ray's sockets must fit into the 103 bytes that macOS allows; 62 are Ray's own."""
SHORT_PARENT = "/tmp"
RANDOM = "run-"
"""The beginning of the name of a random folder above, behind the name of the usual one."""
OWNER, HOST = "supervisor.pid", "host.pid"
NO_SESSION = -2
NO_PROCESS = 2**31 - 1
"""A number for a session or a process that does not exist."""


def temp_folder() -> Path:
    """Returns a new folder: under Pippin's home, or under /tmp where that path is too long.

    Folders of launchers that were killed are cleared away, with what is left of their processes.
    """
    name, short = secrets.token_hex(3), Path(f"{SHORT_PARENT}/pippin-{os.getuid()}")
    for parent in (home() / "r", short):
        if len(str(parent / name)) <= LONGEST_PATH and _is_ours(parent):
            _clear_old(parent.glob(f"[!.]*/{OWNER}"))  # not folders that are still being made
            return _made(parent, name)
    _clear_old(short.parent.glob(f"{short.name}-{RANDOM}*/*/{OWNER}"))
    return _made(Path(tempfile.mkdtemp("", f"{short.name}-{RANDOM}", short.parent)), "r")


def remove(folder: Path) -> None:
    """Deletes a session's folder, and the folder above where that was made for it alone."""
    shutil.rmtree(folder, ignore_errors=True)
    if f"-{RANDOM}" in folder.parent.name:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _made(parent: Path, name: str) -> Path:
    aside = parent / f".{name}"
    aside.mkdir(mode=PRIVATE)
    (aside / OWNER).write_text(str(os.getpid()))
    return aside.rename(parent / name)


def _is_ours(parent: Path) -> bool:
    """Returns whether no other user can write into a folder, which is made if need be, or swap it for
    another.
    """
    try:
        private_folder(parent)
        if os.lstat(parent).st_uid == os.geteuid() and not parent.is_symlink():
            parent.chmod(PRIVATE)  # it may be open to others
        return is_private(parent)
    except OSError:
        return False


def _clear_old(owners: Iterable[Path]) -> None:
    for owner in owners:
        if is_private(owner.parent.parent) and not _alive(owner):
            _clear_away(owner.parent)


def _alive(owner: Path) -> bool:
    try:
        os.kill(_number(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _clear_away(folder: Path) -> None:
    """Clears away what a killed supervisor left, where its watchdog has not come to it yet or was
    killed as well.

    Ray's daemons name the folder. The actors do not, but they are in one session with the daemons.
    """
    host = _number(folder / HOST)
    daemons = processes.belonging(NO_SESSION, str(folder))
    sure = any(processes.session_of(daemon.pid) == host for daemon in daemons)
    processes.end(
        host if sure else NO_SESSION, str(folder)
    )  # the number alone may belong to another process by now
    remove(folder)


def _number(file: Path) -> int:
    """Returns a process id, or NO_PROCESS where there is none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return NO_PROCESS
