"""`pippin check RECIPE --prompt`: the first prompt as the model reads it, token by token.

Whether BOS stands before it, what the chat template adds and where an answer ends are seen here before
anything is trained. It imports the tokenizer's library, a second or two, so a plain `check` leaves it out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from configs.load import NOT_FOLDERS
from configs.schema import Settings
from configs.tasks import Jsonl
from runtime import template_process
from runtime.checkpoint_files import cached
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt

if TYPE_CHECKING:
    from policies.tokens import Tokens

SHOWN = 200
"""Tokens of a prompt that are printed: the first and the last of a longer one."""


def prompt_lines(settings: Settings) -> Iterator[str]:
    """Yields the lines to print. Raises BadInput for data or a tokenizer that cannot be used."""
    folder = _here(settings.model.path)
    if folder is None:
        yield f"unknown: {settings.model.path} is not on this machine yet, so its tokenizer is not either"
        return
    from policies.load import load_tokens

    tokens = load_tokens(settings.model, folder)
    try:
        yield from _shown(tokens, _first(settings))
    finally:
        template_process.close()


def _here(path: str) -> Path | None:
    """Returns the checkpoint's folder if it is on this machine."""
    if path in NOT_FOLDERS:
        from ops.seed import seedling_folder

        folder = seedling_folder(name=path)
    else:
        folder = Path(path) if Path(path).is_absolute() else cached(path)
    return folder if folder is not None and folder.is_dir() else None


def _first(settings: Settings) -> Prompt:
    """Returns the run's first prompt; the user's reward function is not started for it."""
    task = settings.task
    if isinstance(task, Jsonl):
        task = replace(task, reward="")
    opened = open_task(task, settings.seed)
    try:
        return opened.prompt("train", 0)
    finally:
        opened.close()


def _shown(tokens: "Tokens", prompt: Prompt) -> Iterator[str]:
    ids = tokens.prompt(prompt.messages)
    template = "the checkpoint's chat template" if tokens.has_template else "no chat template"
    yield f"{prompt.place}: {len(ids)} tokens, by {template}.\n"
    numbered = list(zip(ids, tokens.pieces(ids)))
    half = SHOWN // 2
    cut = len(numbered) > SHOWN
    for token, piece in numbered[:half] if cut else numbered:
        yield _line(token, piece)
    if cut:
        yield f"  {len(numbered) - SHOWN:,} more"
        for token, piece in numbered[-half:]:
            yield _line(token, piece)
    end = tokens.stop_token()
    yield f"\nAn answer in data ends with token {end}, {tokens.pieces([end])[0]!r}."
    stops = sorted(tokens.stop_tokens)
    named = ", ".join(f"{i} {piece!r}" for i, piece in zip(stops, tokens.pieces(stops)))
    yield f"Sampling stops at {named}."


def _line(token: int, piece: str) -> str:
    return f"  {token:>7}  {piece!r}"
