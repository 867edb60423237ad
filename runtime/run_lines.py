"""The .jsonl files of a run: one JSON object on each line, with a checksum, appended step by step.

The last key of a line is the CRC-32 of the file's name and of the line up to that key, so a line that is
torn, damaged or copied from another file is detected and left out.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from runtime import failpoints
from runtime.durable import PRIVATE_FILE, full_disk_explained, write_file

CRC = b',"crc32":'


def append(path: Path, record: Any) -> None:
    """Appends one object. Raises RunFailed if the disk is full."""
    line = _checked_line(path.name, record)
    with full_disk_explained(path, len(line)):
        failpoints.hit("disk.write")
        path.touch(PRIVATE_FILE)
        with path.open("ab") as out:
            out.write(line)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, without torn and damaged lines; none if there is no file."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [record for line in lines if (record := _record(path.name, line)) is not None]


def keep(path: Path, last_step: int, needed: Iterable[tuple[int, str | None]] = ()) -> str:
    """Drops the objects of steps after `last_step`, because the run repeats those steps.

    Returns a sentence if some of the `needed` (step, and metric if the lines name one) have no
    undamaged line, and "" otherwise.
    """
    lines = [line for line in read(path) if line["step"] <= last_step]
    once = {(line["step"], line.get("metric")): line for line in lines}
    write_file(path, b"".join(_checked_line(path.name, line) for line in once.values()))
    missing = [str(step) for step, metric in needed if (step, metric) not in once]
    if not missing:
        return ""
    return f"{path}: damaged, it has lost step {', '.join(missing[:5])}" + (
        f" and {len(missing) - 5} others" if len(missing) > 5 else ""
    )


def _checked_line(file: str, record: Any) -> bytes:
    line = msgspec.json.encode(record)[:-1]
    return b"%b%b%d}\n" % (line, CRC, zlib.crc32(line, zlib.crc32(file.encode())))


def _record(file: str, line: bytes) -> dict[str, Any] | None:
    start, _, crc = line.rpartition(CRC)
    try:
        whole = int(crc[:-1]) == zlib.crc32(start, zlib.crc32(file.encode()))
        return msgspec.json.decode(start + b"}", type=dict[str, Any]) if whole else None
    except (ValueError, RecursionError):
        return None
