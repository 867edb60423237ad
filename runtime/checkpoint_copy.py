"""The small files of a checkpoint: the allowed names, the allowed links, and their copy.

A checkpoint may come from an untrusted source, so a file in its folder may be anything: a link can lead to a
private key, to /dev/zero or to a pipe at which a reader waits for ever. Only known names are opened or
copied, only regular files of a bounded size, and a link only if it leads into the folder or into the blobs
that the Hugging Face cache keeps beside it.

    hub/models--org--name/blobs/3f…          the files
    hub/models--org--name/snapshots/<commit>  links to them: the checkpoint's folder
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.errors import BadInput

COPIED = frozenset({
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
})  # fmt: skip
"""Names of files that an export copies unchanged."""
READ = COPIED | {"config.json", "hf_quant_config.json", "model.safetensors.index.json"}
"""Names of files that Pippin or its libraries open."""
TEMPLATES = "additional_chat_templates"
"""Name of a folder with further templates, which transformers reads."""
MAX_BYTES = 64 << 20
MAX_VOCABULARY_BYTES = 256 << 20
"""Largest size of a vocabulary file; the largest tokenizers have 262,144 tokens in 35 MB."""
VOCABULARIES = frozenset(
    {"merges.txt", "tekken.json", "tokenizer.json", "tokenizer.model", "vocab.json"}
)
CHUNK_BYTES = 1 << 20


def check_small_files(folder: Path) -> None:
    """Raises BadInput for the first known name in `folder` that is not a regular file of bounded size."""
    for name in sorted(READ):
        path = folder / name
        if os.path.lexists(path):
            check_plain(path, folder, _limit(name))
    templates = folder / TEMPLATES
    if os.path.lexists(templates):
        if templates.is_symlink() or not templates.is_dir():
            raise BadInput(f"{templates}: needs a folder, it is something else")
        for path in sorted(templates.glob("*.jinja")):
            check_plain(path, folder, MAX_BYTES)


def check_plain(path: Path, folder: Path, limit: int) -> None:
    """Raises BadInput unless `path` is a regular file of at most `limit` bytes that belongs to `folder`."""
    if path.is_symlink():
        _check_link(path, folder)
    try:
        found = path.stat()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path}: needs a regular file, it is {_kind(found.st_mode)}")
    if found.st_size > limit:
        raise BadInput(f"{path}: needs at most {limit:,} bytes, has {found.st_size:,}")


def check_weights(path: Path) -> None:
    """Raises BadInput unless `path` leads to a regular file, which may be on another disk."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path}: needs a regular file, it is {_kind(mode)}")


def copy_small_files(source: Path, target: Path) -> list[str]:
    """Copies tokenizer files and templates from one checkpoint's folder to another; returns their names.

    Raises BadInput for a known name that is not a regular file of the checkpoint.
    """
    copied = []
    for name in sorted(COPIED):
        if os.path.lexists(source / name):
            check_plain(source / name, source, _limit(name))
            with opened(source / name) as file:
                _copy(file, target / name, _limit(name))
            copied.append(name)
    return copied


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading without ever waiting, even if a pipe has just replaced the file.

    Raises BadInput if the file is not regular.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise BadInput(f"{path}: needs a regular file, it is {_kind(mode)}")
        yield file


def _copy(file: BinaryIO, target: Path, limit: int) -> None:
    left = limit
    with target.open("xb") as out:
        while chunk := file.read(min(CHUNK_BYTES, left)):
            out.write(chunk)
            left -= len(chunk)


def _check_link(path: Path, folder: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself
        raise BadInput(f"{path}: a link that leads to no file") from None
    own = folder.resolve()
    allowed = [own]
    if own.parent.name == "snapshots":
        allowed.append(own.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise BadInput(
            f"{path}: a link that leads out of the checkpoint, which is not followed: put the file there"
        )


def _limit(name: str) -> int:
    return MAX_VOCABULARY_BYTES if name in VOCABULARIES else MAX_BYTES


def _kind(mode: int) -> str:
    kinds = [
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ]
    return next((kind for matches, kind in kinds if matches(mode)), "something else")
