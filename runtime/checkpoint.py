"""Checkpoints: published whole, verified when read, and renamed before they are deleted.

    checkpoints/step-000012/
      weights.safetensors     the trained weights
      optimizer.safetensors   the optimiser's moments (and full-precision masters)
      v000011.safetensors     older weights, if sampling lags behind
      state.json              the state of the run
      manifest.json           SHA-256 of each of the others, and of itself
    checkpoints/step-000012.1/
                              the same step, published again

A checkpoint is acknowledged only after its folder has been renamed and the parent synced; from then on
nothing changes it until a newer one is published. A damaged checkpoint is reported, and the previous one is
used. A run that continues from there renames the damaged one to `damaged-…`, because the run repeats those
steps and may compute them differently.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Struct

from runtime import failpoints
from runtime.durable import (
    full_disk_explained,
    rename_away,
    sha256_file,
    sync,
    sync_folder,
    write_new,
)
from runtime.errors import BadInput, Damaged

SCHEMA_VERSION = 1
"""Version of state.json. The form of the manifest has no version and does not change."""
MANIFEST = "manifest.json"
STATE = "state.json"
DAMAGED = "damaged-"
_NAME = re.compile(r"step-(\d{6,})(?:\.(\d+))?", re.ASCII)
_NONE_KNOWN: Mapping[str, str] = MappingProxyType({})

Identity = tuple[int, int]
"""Step and revision."""


class Checkpoint(Struct, frozen=True):
    """A published checkpoint with verified files."""

    step: int
    revision: int
    """Number of times that the step was published again."""
    path: Path
    state: dict[str, Any]
    files: dict[str, str]
    """SHA-256 of each file by name."""


class _Manifest(Struct):
    step: int
    revision: int
    files: dict[str, str]
    sha256: str
    """SHA-256 of the other fields."""


def publish(
    root: Path,
    step: int,
    state: Mapping[str, Any],
    write: Callable[[Path], None],
    known: Mapping[str, str] = _NONE_KNOWN,
) -> Checkpoint:
    """Publishes a checkpoint, whose files `write(folder)` writes, and returns it.

    Publishing a step again makes a new revision. `known` has the SHA-256 of files that were verified
    already. Checkpoints of later steps are set aside, because the run repeats those steps.
    """
    clear_leftovers(root)
    there = (*_published(root), *_published(root, DAMAGED))
    revision = max((r for s, r in there if s == step), default=-1) + 1
    target = root / _name(step, revision)
    aside = root / f".writing-{target.name}-{os.getpid()}"
    before = size_bytes(root)
    try:
        with full_disk_explained(root, lambda: max(before, _bytes(aside))):
            failpoints.hit("disk.write")
            aside.mkdir()
            failpoints.hit("checkpoint.begin")
            write(aside)
            failpoints.hit("checkpoint.files")
            content = json.dumps({**state, "schema_version": SCHEMA_VERSION}, sort_keys=True)
            write_new(aside / STATE, content.encode())
            sums = {f.name: known.get(f.name) or sha256_file(f) for f in _files(aside)}
            manifest = {"step": step, "revision": revision, "files": sums}
            manifest["sha256"] = _sum(manifest)
            write_new(aside / MANIFEST, json.dumps(manifest, sort_keys=True).encode())
            failpoints.hit("checkpoint.manifest")
            sync_folder(aside)
            failpoints.hit("checkpoint.before_rename")
            os.rename(aside, target)
            failpoints.hit("checkpoint.after_rename")
            sync(root)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    failpoints.hit("checkpoint.published")
    set_aside(root, step, revision)
    return Checkpoint(step, revision, target, dict(state), sums)


def steps(root: Path) -> list[int]:
    """Returns the steps of the published checkpoints, oldest first."""
    return sorted({step for step, _ in _published(root)})


def size_bytes(root: Path) -> int:
    """Returns the size of the newest published checkpoint, an estimate of the next one's."""
    published = _published(root)
    return _bytes(published[max(published)]) if published else 0


def read(root: Path, step: int) -> Checkpoint:
    """Returns the newest revision of a step after verifying every file.

    Raises Damaged, naming the file; BadInput if a newer Pippin wrote it.
    """
    revisions = [identity for identity in _published(root) if identity[0] == step]
    if not revisions:
        raise Damaged(f"{root}: has no checkpoint of step {step}")
    return _verified(root, max(revisions))


def newest(
    root: Path, accept: Callable[[Checkpoint], object] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest good checkpoint, or None, and a sentence for each damaged one.

    `accept` may raise Damaged for files elsewhere that a checkpoint refers to, such as the log; then the
    checkpoint counts as damaged. Raises BadInput if a newer Pippin wrote a checkpoint, because using an older
    one would lose work.
    """
    passed_over = []
    for identity in sorted(_published(root), reverse=True):
        try:
            found = _verified(root, identity)
            if accept is not None:
                accept(found)
            return found, passed_over
        except Damaged as error:
            passed_over.append(str(error))
    return None, passed_over


def set_aside(root: Path, step: int, revision: int) -> None:
    """Renames newer checkpoints to `damaged-…`, durably, because the run continues from this one.

    It must be called before files that such checkpoints refer to are truncated or replaced.
    """
    newer = {i: path for i, path in _published(root).items() if i > (step, revision)}
    for path in newer.values():
        os.rename(path, path.with_name(DAMAGED + path.name))
    if newer:
        sync(root)


def retire(root: Path, keep: int, also: Iterable[int] = (), every: int = 0) -> None:
    """Deletes old checkpoints, and those set aside whose step the run has passed.

    The newest revision stays of the newest `keep` steps (at least one), of the steps in `also`, and of
    multiples of `every` (0: none).
    """
    published = _published(root)
    if not published:
        return
    present = steps(root)
    spared = {*present[-max(keep, 1) :], *also}
    latest = dict(sorted(published))  # the last pair of a step wins: its newest revision
    for (step, revision), path in sorted(published.items()):
        stays = step in spared or (every and step and step % every == 0)
        if not stays or revision != latest[step]:
            trash = rename_away(path)
            failpoints.hit("checkpoint.retire_renamed")
            shutil.rmtree(trash, ignore_errors=True)
            failpoints.hit("checkpoint.retired")
    for (step, _), path in _published(root, DAMAGED).items():
        if step <= present[-1]:
            shutil.rmtree(path, ignore_errors=True)


def clear_leftovers(root: Path) -> None:
    """Deletes unfinished folders of killed writers."""
    for leftover in (*root.glob(".writing-*"), *root.glob(".trash-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _verified(root: Path, identity: Identity) -> Checkpoint:
    folder = root / _name(*identity)
    manifest = _manifest(folder)
    if (manifest.step, manifest.revision) != identity:
        found = _name(manifest.step, manifest.revision)
        raise Damaged(f"{folder / MANIFEST}: is of {found}, not of {folder.name}")
    for name, expected in sorted(manifest.files.items()):
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            raise Damaged(f"{folder / name}: cannot be read: {error.strerror}") from None
        if found != expected:
            raise Damaged(f"{folder / name}: is not what was written (SHA-256 differs)")
    return Checkpoint(*identity, folder, _state(folder / STATE), manifest.files)


def _manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    try:
        decoded = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        manifest = msgspec.convert(decoded, _Manifest)
    except OSError as error:
        raise Damaged(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise Damaged(f"{path}: is no manifest: {error}") from None
    del decoded["sha256"]
    if _sum(decoded) != manifest.sha256:
        raise Damaged(f"{path}: is not what was written (SHA-256 differs)")
    if STATE not in manifest.files or any(Path(name).name != name for name in manifest.files):
        raise Damaged(f"{path}: needs {STATE} and names of files beside it, has other ones")
    return manifest


def _state(path: Path) -> dict[str, Any]:
    try:
        state = dict(json.loads(path.read_bytes()))
        version = state.pop("schema_version")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise Damaged(f"{path}: is no state with a schema_version") from None
    if type(version) is not int or version < 1:
        raise Damaged(f"{path}: needs a schema_version ≥ 1, has {version!r:.20}")
    if version > SCHEMA_VERSION:
        raise BadInput(
            f"{path}: schema version {version} is newer than this Pippin knows ({SCHEMA_VERSION})"
        )
    return state


def _name(step: int, revision: int) -> str:
    return f"step-{step:06d}.{revision}" if revision else f"step-{step:06d}"


def _published(root: Path, prefix: str = "") -> dict[Identity, Path]:
    """Returns the checkpoints' folders by identity; with a prefix, those renamed to begin with it."""
    found = {}
    for path in root.glob(f"{prefix}step-*"):
        if named := _NAME.fullmatch(path.name.removeprefix(prefix)):
            identity = int(named[1]), int(named[2] or 0)
            if path.name == prefix + _name(*identity):
                found[identity] = path
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _bytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError):  # retired meanwhile by the run's writer
        for file in _files(folder):
            total += file.lstat().st_size
    return total


def _sum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
