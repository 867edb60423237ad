"""Finds a local teacher's checkpoint, and computes its digest."""

import hashlib
import subprocess
import sys
from pathlib import Path

from ops.terminal import say
from runtime.checkpoint_files import inspect
from runtime.durable import sha256_file
from runtime.errors import BadInput, RunFailed


def find(path: str) -> Path:
    """Returns the folder of a checkpoint, a hub id or the seedling. Raises BadInput if there is none."""
    if path != "seedling":
        from policies.load import locate

        try:
            return locate(path)
        except BadInput as error:
            raise BadInput(str(error).replace("model.path", "teacher.path", 1)) from None
    from ops.seed import seedling_folder

    if not seedling_folder().is_dir():
        say("raising the seedling (a small model, some seconds, only this once)", err=True)
        raised = subprocess.run([sys.executable, "-m", "ops.cli", "seed"], check=False)
        if raised.returncode:
            raise RunFailed("the seedling could not be raised; try: pippin seed")
    return seedling_folder()


def digest(folder: Path) -> str:
    """Returns the SHA-256 over everything that its answers depend on, weights included: seconds for
    gigabytes.

    Raises BadInput for a folder that is no checkpoint.
    """
    whole = hashlib.sha256()
    shards = inspect(folder).shards
    small = (p for p in folder.iterdir() if p.suffix in {".json", ".jinja"} and p.is_file())
    for path in sorted({*shards, *small}):
        whole.update(f"{path.name}\0{sha256_file(path)}\0".encode())
    return whole.hexdigest()
