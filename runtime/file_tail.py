"""Reads only the end of a file, which may be larger than memory."""

from pathlib import Path

TAIL_BYTES = 1 << 16


def tail(path: Path, since: int = 0, limit_bytes: int = TAIL_BYTES) -> bytes:
    """Returns the last bytes of a file, at most `limit_bytes` and none before offset `since`.

    The result begins at a line's start if bytes were left out. Raises OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(since, size - limit_bytes)
        file.seek(start)
        content = file.read(max(size - start, 0))
    if start > since:
        _, newline, rest = content.partition(b"\n")
        return rest if newline else content
    return content


def last_lines(path: Path, count: int, limit_bytes: int = TAIL_BYTES) -> list[str]:
    """Returns the last `count` lines within the bytes that `tail` reads."""
    lines = tail(path, limit_bytes=limit_bytes).decode(errors="replace").splitlines()
    return lines[-count:] if count > 0 else []
