"""Checkpoints: published whole, verified when read, retired by renaming away first.

    checkpoints/step-000012/
      weights.safetensors     what is trained
      optimizer.safetensors   its moments (and full-precision masters)
      v000011.safetensors     older weights, where sampling lags behind
      state.json              where the run stands
      manifest.json           SHA-256 of each of the others, and of itself
    checkpoints/step-000012.1/
                              the same step, published again

A checkpoint is acknowledged only after its folder has been renamed and the parent synced; from then on
nothing touches it until a newer one is published. A damaged one is named and passed over for the one
before; a run that goes on from there sets it aside, for it is of a history that the run has left.
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
"""Of state.json. The manifest's form is older than any version and stays."""
MANIFEST = "manifest.json"
STATE = "state.json"
DAMAGED = "damaged-"
_NAME = re.compile(r"step-(\d{6,})(?:\.(\d+))?", re.ASCII)
_NONE_KNOWN: Mapping[str, str] = MappingProxyType({})

Identity = tuple[int, int]
"""Step and revision."""


class Checkpoint(Struct, frozen=True):
    """A published checkpoint whose files are what was written."""

    step: int
    revision: int
    """0, and one more for each time that the step was published again."""
    path: Path
    state: dict[str, Any]
    files: dict[str, str]
    """SHA-256 by name."""


class _Manifest(Struct):
    step: int
    revision: int
    files: dict[str, str]
    sha256: str
    """Of the other fields."""


def publish(
    root: Path,
    step: int,
    state: Mapping[str, Any],
    write: Callable[[Path], None],
    known: Mapping[str, str] = _NONE_KNOWN,
) -> Checkpoint:
    """Publish a checkpoint: `write(folder)` puts its files, the rest follows.

    Publishing a step again makes a new revision. `known` has the SHA-256 of files that were verified
    already. Later steps that are there are of a history that the run has left: they are set aside.
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
    """Steps of the published checkpoints, oldest first."""
    return sorted({step for step, _ in _published(root)})


def size_bytes(root: Path) -> int:
    """What the newest published checkpoint takes: about what the next one will."""
    published = _published(root)
    return _bytes(published[max(published)]) if published else 0


def read(root: Path, step: int) -> Checkpoint:
    """The newest revision of a step, every file verified.

    Raises Damaged, naming the file; BadInput if a newer Pippin wrote it.
    """
    revisions = [identity for identity in _published(root) if identity[0] == step]
    if not revisions:
        raise Damaged(f"{root}: has no checkpoint of step {step}")
    return _verified(root, max(revisions))


def newest(
    root: Path, accept: Callable[[Checkpoint], object] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, or None; and a sentence for each damaged one passed over.

    `accept` may raise Damaged for what a checkpoint names elsewhere, such as the log; then it is passed
    over too. Raises BadInput if a newer Pippin wrote it: to pass it over would be to lose work.
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
    """Rename what is newer to `damaged-…`, durably: the run goes on from here, on another history.

    To be called before anything that such a checkpoint names is cut off or replaced.
    """
    newer = {i: path for i, path in _published(root).items() if i > (step, revision)}
    for path in newer.values():
        os.rename(path, path.with_name(DAMAGED + path.name))
    if newer:
        sync(root)


def retire(root: Path, keep: int, also: Iterable[int] = (), every: int = 0) -> None:
    """Delete checkpoints, and what was set aside once the run is past it.

    Of the newest `keep` steps (at least one), of those in `also` and of the multiples of `every`
    (0: none), the newest revision stays.
    """
    published = _published(root)
    if not published:
        return
    present = steps(root)
    spared = {*present[-max(keep, 1) :], *also}
    latest = dict(sorted(published))  # a step's last revision is what stays of its pairs
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
    """Delete what a writer that was killed left."""
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
    """Folders by identity; with a prefix, those that were renamed."""
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
