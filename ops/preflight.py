"""Everything that can be known to be wrong before a run: asked before anything is written."""

import os
import shutil
from pathlib import Path

import msgspec

from configs.schema import Full, Settings
from ops.session import require_free
from runtime.checkpoint_files import inspect
from runtime.errors import BadInput
from runtime.rundir import NAME_CHARACTERS
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Split, Task

PROMPTS_CHECKED = 20_000
"""Prompts of a data set that are tokenised beforehand; of an endless task, the first few hundred."""
ENDLESS_CHECKED = 200
COPIES_OF_WEIGHTS = 5
"""Weights versions and checkpoints that a run holds on disk at once, roughly, besides its moments."""


def check_name(root: Path, name: str) -> None:
    """Raises BadInput for a name that is taken or no name, or a root that cannot be written."""
    if not name or not set(name) <= NAME_CHARACTERS or name.startswith((".", "-")):
        raise BadInput(
            f"--name: needs letters, digits, '-', '_' and '.', a letter or digit first; got {name!r}"
        )
    if (root / name).exists():
        raise BadInput(f"--name: a run {name!r} is there already ({root / name}); choose another")
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"--root: {existing} cannot be written")


def check_run(settings: Settings, root: Path) -> None:
    """Raises BadInput for the first thing that would stop a run: checkpoint, data, disk, port.

    `settings.model.path` is a local folder by now.
    """
    folder = Path(settings.model.path)
    files = inspect(folder)
    if settings.dashboard.enabled and settings.dashboard.port:
        require_free(settings.dashboard.port)
    _check_disk(settings, root, files.weights_bytes)
    task = open_task(settings.task, settings.seed, settings.verifier.timeout_s)
    try:
        _check_prompts(settings, folder, task)
    finally:
        task.close()


def _check_disk(settings: Settings, root: Path, weights_bytes: int) -> None:
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    trained = weights_bytes if isinstance(settings.model.train, Full) else weights_bytes // 20
    kept = settings.checkpoint.keep + 2
    need = trained * (COPIES_OF_WEIGHTS + 3 * kept) + (64 << 20)
    if free < need:
        raise BadInput(
            f"--root: {existing} has {free / 1e9:.2f} GB free, this run needs about {need / 1e9:.2f} GB "
            f"for checkpoints (checkpoint.keep = {settings.checkpoint.keep})"
        )


def _check_prompts(settings: Settings, folder: Path, task: Task) -> None:
    from policies.model import context_length, load_tokens
    from policies.rows import encode

    tokens = load_tokens(settings.model, folder)
    limit = context_length(folder) - settings.sampling.max_new_tokens
    if limit < 1:
        raise BadInput(
            f"sampling.max_new_tokens: {settings.sampling.max_new_tokens} leaves no room for a prompt "
            f"in the model's context of {context_length(folder)} tokens"
        )
    splits: list[tuple[Split, int]] = [("train", PROMPTS_CHECKED)]
    if settings.eval.prompts:
        splits.append(("eval", settings.eval.prompts))
    for split, most in splits:
        size = task.size(split)
        count = min(most, ENDLESS_CHECKED) if size is None else min(most, size)
        for index in range(count):
            encode(tokens, task.prompt(split, index), limit)


def with_model(settings: Settings, folder: Path) -> Settings:
    """The settings with the checkpoint's folder in place of a hub id or "seedling"."""
    model = msgspec.structs.replace(settings.model, path=str(folder.absolute()))
    return msgspec.structs.replace(settings, model=model)
