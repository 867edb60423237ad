"""Keeps the end of what each of Ray's processes wrote when something went wrong, in the run's logs."""

import contextlib
from pathlib import Path

from runtime.file_tail import tail

GREETINGS = (b":job_id:", b":actor_name:")
"""The lines that every worker of Ray's writes to its standard error."""
KEPT_BYTES = 1 << 18
"""The bytes that are kept of each file: a loop that prints fills gigabytes, and its end is what a person
reads.
"""
KEPT_FILES = 100


def keep_logs(temp: Path, logs: Path) -> None:
    """Copies the end of what Ray's processes wrote to their standard error, where it is more than a
    greeting.

    The newest files are kept. A full disk does not stop the clearing.
    """
    files = [file for file in temp.glob("session_*/logs/*.err") if not file.is_symlink()]
    for file in sorted(files, key=_changed, reverse=True)[:KEPT_FILES]:
        with contextlib.suppress(OSError):
            content = tail(file, limit_bytes=KEPT_BYTES)
            if any(not line.startswith(GREETINGS) for line in content.splitlines()):
                (logs / f"ray-{file.name}").write_bytes(content)


def _changed(file: Path) -> float:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime
    return 0.0
