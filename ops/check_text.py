"""Counts the pieces of a run's data that only look like special tokens, with the first place."""

import re
from pathlib import Path
from typing import Any

import msgspec

from configs.schema import Settings
from configs.tasks import Gsm8k, Jsonl
from runtime.checkpoint_copy import opened
from runtime.checkpoint_files import cached
from runtime.tasks.prompt import Prompt

MOST_BYTES = 64 << 20
"""The most bytes of a data file that `pippin check` looks through; a launch reads its rows."""


class PlainText:
    """Looks at the prompts that a launch checks; `tokens` are the model's."""

    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens
        self._pieces = self._rows = 0
        self._first = ""

    def see(self, prompt: Prompt) -> None:
        """Counts the pieces of a prompt's messages and answer that are read as plain text."""
        texts = [message["content"] for message in prompt.messages]
        found = [
            token
            for text in [*texts, prompt.demonstration or ""]
            for token in self._tokens.lookalikes(text)
        ]
        if found:
            self._rows += 1
            self._pieces += len(found)
            self._first = self._first or f"{found[0]} in {prompt.place}"

    def doubts(self) -> list[str]:
        """Returns a sentence if there were any such pieces."""
        if not self._pieces:
            return []
        pieces = "1 piece" if self._pieces == 1 else f"{self._pieces:,} pieces"
        rows = "1 row" if self._rows == 1 else f"{self._rows:,} rows"
        return [
            f"{pieces} of text in {rows} of the data look like special tokens and are read as plain text, "
            f"the first is {self._first}; model.special_tokens_in_text = true lets them be special"
        ]


class _Token(msgspec.Struct):
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_Token] = []


def spelled_in_files(settings: Settings) -> list[str]:
    """Returns a sentence if the task's files spell out a special token of the checkpoint, with the
    first line.

    No tokenizer is needed: the letters are looked for as they are. A checkpoint or a file that is
    missing or cannot be read is skipped, because other checks report it.
    """
    path, task = settings.model.path, settings.task
    folder = Path(path) if Path(path).is_absolute() else cached(path) if "/" in path else None
    if folder is None or not isinstance(task, Gsm8k | Jsonl):
        return []
    try:
        tokenizer = msgspec.json.decode((folder / "tokenizer.json").read_bytes(), type=_Tokenizer)
        texts = [t.content for t in tokenizer.added_tokens if t.special and t.content.strip()]
        for name in filter(None, (task.train, task.eval)):
            with opened(Path(name)) as file:
                content = file.read(MOST_BYTES)
            pattern = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
            if texts and (found := re.search(pattern.encode(), content)):
                line = content.count(b"\n", 0, found.start()) + 1
                return [
                    f"{name}, line {line}: {found[0].decode()} looks like a special token and is read as "
                    "plain text; a launch says how many there are"
                ]
    except (OSError, msgspec.MsgspecError, UnicodeError):
        pass
    return []
