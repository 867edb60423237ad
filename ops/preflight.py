"""Checks everything that can be known to be wrong before a run, before anything is written."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from configs.decisive import decisive
from configs.schema import Settings
from configs.tasks import Jsonl
from ops.check_model import check_models, end_helpers
from ops.check_text import PlainText
from ops.session import require_free
from ops.teachers import Readers, check_teachers
from policies.adapters.registry import adapter_for
from runtime.checkpoint_files import fingerprint, inspect
from runtime.durable import nearest_existing
from runtime.errors import BadInput
from runtime.rundir import LONGEST_NAME, RunDirectory, plain_name
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Split, Task

PROMPTS_CHECKED = 20_000
"""The number of prompts of a data set that are tokenised beforehand; of an endless task, the first few
hundred are.
"""
ENDLESS_CHECKED = 200
CHECKPOINT_SIZE = 7
"""The size of a checkpoint, in sizes of what is trained: with 16-bit weights, two moments and masters."""

LOG_BYTES = 24
"""The bytes of a sampled token in the trajectory log, its text included: 21 were measured where answers are
short.
"""
LOG_SHARE = 0.25
"""The assumed length of answers, as a share of the limit. While the run works, the free space is watched."""


def check_name(root: Path, name: str) -> None:
    """Raises BadInput for a name that is taken or no name, or a root that cannot be written."""
    if not plain_name(name):
        raise BadInput(
            f"--name: needs letters, digits, '-', '_' and '.', a letter or digit first, at most "
            f"{LONGEST_NAME} in all; got {name!r:.120}"
        )
    if (root / name).exists():
        raise BadInput(f"--name: a run {name!r} is there already ({root / name}); choose another")
    existing = nearest_existing(root)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"--root: {existing} cannot be written")


def check_run(settings: Settings, root: Path) -> list[str]:
    """Returns what can run and will probably not do what was meant, a sentence each. Raises BadInput
    for the first thing that would stop a run: checkpoint, data, disk, port.

    `settings.model.path` is a local folder by now.
    """
    folder = Path(settings.model.path)
    files = inspect(folder)
    if settings.dashboard.enabled and settings.dashboard.port:
        require_free(settings.dashboard.port)
    _check_disk(settings, root, files.weights_bytes)
    check_models(settings)
    task = open_task(settings.task, settings.seed, settings.verifier.timeout_s)
    doubts: list[str] = []
    try:
        if settings.facts.teachers:
            doubts = check_teachers(settings)
        doubts += _check_prompts(settings, folder, task)
        _check_reward(settings, task)
    finally:
        task.close()
        end_helpers()
    return doubts


def _check_disk(settings: Settings, root: Path, weights_bytes: int) -> None:
    existing = nearest_existing(root)
    free = shutil.disk_usage(existing).free
    adds_weights = adapter_for(settings.model.train).adds_weights
    trained = weights_bytes // 20 if adds_weights else weights_bytes
    steps, every = settings.algorithm.steps, settings.checkpoint.keep_every
    kept = settings.checkpoint.keep + 2 + (steps // every if every else 0)
    answers = steps * settings.facts.rows_per_step * settings.sampling.max_new_tokens
    log = int(LOG_BYTES * LOG_SHARE * answers)
    need = trained * (2 + CHECKPOINT_SIZE * kept) + log + (64 << 20)
    if free < need:
        raise BadInput(
            f"--root: {existing} has {free / 1e9:.2f} GB free, this run needs about {need / 1e9:.2f} GB "
            f"for {kept} checkpoints (checkpoint.keep, keep_every) and its trajectories: free "
            f"{(need - free) / 1e9:.2f} GB"
        )


def _check_reward(settings: Settings, task: Task) -> None:
    """Raises BadInput if a user's reward does not give a number. It may raise on an empty answer."""
    if isinstance(settings.task, Jsonl) and settings.task.reward:
        verdict = task.verify(task.prompt("train", 0), "")
        if verdict.failure in ("not_a_number", "out_of_range"):
            raise BadInput(f"{settings.task.reward}: {verdict.detail}")


def _check_prompts(settings: Settings, folder: Path, task: Task) -> list[str]:
    from policies.load import context_length, load_tokens
    from policies.rows import encode

    tokens = load_tokens(settings.model, folder)
    readers, plain = Readers(settings), PlainText(tokens)
    answer = settings.sampling.max_new_tokens
    splits: list[tuple[Split, int, str, int]] = [
        ("train", PROMPTS_CHECKED, "sampling.max_new_tokens", answer)
    ]
    if settings.eval.prompts:
        key = "eval.max_new_tokens" if settings.eval.max_new_tokens else "sampling.max_new_tokens"
        longest = settings.eval.max_new_tokens or answer
        splits.append(("eval", settings.eval.prompts, key, longest))
    for split, most, key, new_tokens in splits:
        limit = context_length(folder) - new_tokens
        if limit < 1:
            raise BadInput(
                f"{key}: {new_tokens} leaves no room for a prompt in the model's context of "
                f"{context_length(folder)} tokens"
            )
        size = task.size(split)
        count = min(most, ENDLESS_CHECKED) if size is None else min(most, size)
        for index in range(count):
            prompt = task.prompt(split, index)
            encode(tokens, prompt, limit)
            plain.see(prompt)
            if split == "train" and settings.facts.teachers:
                readers.check(prompt)
    return plain.doubts()


def origin(settings: Settings) -> dict[str, Any]:
    """Returns what run.json keeps, so that the run is resumed only with the same: see `check_same_run`."""
    return {"model": fingerprint(inspect(settings.model.path)), "settings": decisive(settings)}


def check_same_run(run: RunDirectory, settings: Settings) -> None:
    """Raises BadInput if the checkpoint or a decisive setting is not what the run began with."""
    check_same_model(run, settings)
    now, began = decisive(settings), run.about().get("settings")
    for key, value in began.items() if isinstance(began, dict) else ():
        if now.get(key, value) != value:
            raise BadInput(
                f"{run.recipe}: {key} is {now[key]!r:.60}, but {run.name} began with {value!r:.60}: "
                "put it back, or launch another run"
            )


def check_same_model(run: RunDirectory, settings: Settings) -> None:
    """Raises BadInput if the checkpoint that the run began with has changed."""
    began = run.about().get("model")
    if began and began != fingerprint(inspect(settings.model.path)):
        raise BadInput(
            f"{settings.model.path}: is not the checkpoint any more that {run.name} began with"
        )


def with_model(
    settings: Settings, folder: Path, teachers: Mapping[str, Path] | None = None
) -> Settings:
    """Returns the settings with folders in place of a hub id or "seedling": the model's, and local
    teachers'.
    """
    model = replace(settings.model, path=str(folder.absolute()))
    found = {name: str(path.absolute()) for name, path in (teachers or {}).items()}
    algorithm = settings.algorithm.with_teachers(found)
    return replace(settings, model=model, algorithm=algorithm)
