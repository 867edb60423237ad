"""Checkpoints: published whole, verified when read, retired by renaming away first.

    checkpoints/step-000012/
      weights.safetensors     what is trained
      optimizer.safetensors   its moments (and full-precision masters)
      v000011.safetensors     older weights, where sampling lags behind
      state.json              where the run stands
      manifest.json           SHA-256 of each of the others

A checkpoint is acknowledged only after its folder has been renamed and the parent synced. A damaged one
is named and passed over for the one before.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

from runtime.durable import full_disk_explained, publish_folder, retire_folder, sha256_file
from runtime.errors import Damaged

MANIFEST = "manifest.json"


class Checkpoint(Struct, frozen=True):
    """A published checkpoint whose files are what was written."""

    step: int
    path: Path
    state: dict[str, Any]


def publish(root: Path, step: int, state: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Publish a checkpoint: `write(folder)` puts its files, the rest follows. Returns its folder.

    Publishing a step again replaces it: the run went back and came here anew.
    """
    target = root / f"step-{step:06d}"
    aside = root / f".writing-{step:06d}-{os.getpid()}"
    for leftover in (
        *root.glob(".writing-*"),
        *root.glob(".trash-*"),
    ):  # of a writer that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with full_disk_explained(root):
        aside.mkdir()
        try:
            write(aside)
            (aside / "state.json").write_text(json.dumps(state, sort_keys=True))
            sums = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
            (aside / MANIFEST).write_text(json.dumps({"step": step, "files": sums}, sort_keys=True))
            if target.exists():
                retire_folder(target)
            publish_folder(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return target


def steps(root: Path) -> list[int]:
    """Steps of the published checkpoints, oldest first."""
    return sorted(int(p.name[5:]) for p in root.glob("step-*") if p.name[5:].isdigit())


def read(root: Path, step: int) -> Checkpoint:
    """One checkpoint, every file verified. Raises Damaged, naming the file."""
    folder = root / f"step-{step:06d}"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files, written = dict(manifest["files"]), int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / MANIFEST}: cannot be read ({type(error).__name__})") from None
    if "state.json" not in files:
        raise Damaged(f"{folder / MANIFEST}: does not name state.json")
    if written != step:
        raise Damaged(f"{folder / MANIFEST}: is of step {written}, not {step}")
    for name, expected in sorted(files.items()):
        try:
            found = sha256_file(folder / name)
        except OSError:
            raise Damaged(f"{folder / name}: is missing") from None
        if found != expected:
            raise Damaged(f"{folder / name}: is not what was written (SHA-256 differs)")
    return Checkpoint(step, folder, json.loads((folder / "state.json").read_bytes()))


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, or None; and a sentence for each damaged one passed over."""
    passed_over = []
    for step in reversed(steps(root)):
        try:
            return read(root, step), passed_over
        except Damaged as error:
            passed_over.append(str(error))
    return None, passed_over


def retire(root: Path, keep: int, also: Iterable[int] = ()) -> None:
    """Delete all but the newest `keep` and those of the steps in `also`."""
    present = steps(root)
    spared = {*present[-keep:], *also}
    for step in present:
        if step not in spared:
            retire_folder(root / f"step-{step:06d}")
