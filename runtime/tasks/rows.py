"""The user's own task: prompts in JSONL, scored by the user's Python function or only imitated.

The reward function sees the whole row, so whatever it compares with is simply another column.
Without one (SFT), an answer passes if it is the row's response word for word; with neither (a teacher
is asked), nothing is judged.
"""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from configs.schema import Jsonl
from runtime.errors import BadInput
from runtime.jsonl import Row, kind, read_rows
from runtime.reward_process import RewardCall, RewardProcess
from runtime.tasks.finite import row_of
from runtime.tasks.procedural import right_or_wrong
from runtime.tasks.prompt import Prompt, Split, Verdict

ROLES = ("system", "user", "assistant")


class RowsTask:
    """Rows of one or two files, and the process of the reward function if there is one.

    Raises BadInput for a bad file, a bad row or a reward file that cannot be used.
    """

    name = "jsonl"

    def __init__(
        self, settings: Jsonl, seed: int, reward_timeout_s: float, reward_log: Path | None = None
    ) -> None:
        self._settings = settings
        self._seed = seed
        self._rows = _splits(settings)
        self._process: RewardProcess | None = None
        if settings.reward:
            self._process = RewardProcess(settings.reward, reward_timeout_s, log=reward_log)

    def size(self, split: Split) -> int | None:
        """The rows of the split."""
        return len(self._rows[split])

    def prompt(self, split: Split, index: int) -> Prompt:
        """The row's prompt; `truth` is the whole row."""
        rows = self._rows[split]
        row = rows[row_of(split, index, len(rows), self._seed, self.name)]
        response = self._settings.response
        return Prompt(
            task=self.name,
            index=index,
            source=f"{row.path}, line {row.line}",
            messages=_messages(row, self._settings.prompt),
            truth=row.values,
            demonstration=row.values[response] if response else None,
            teacher=row.values[self._settings.teacher] if self._settings.teacher else "",
        )

    def verify(self, prompt: Prompt, completion: str) -> Verdict:
        """The reward function's number, passed from `pass_at` on; or equality with the response.

        The function gets the completion as it was written, surrounding whitespace included.
        """
        row: dict[str, Any] = prompt.truth
        if self._process is None and not self._settings.response:
            return Verdict(reward=None)
        if self._process is None:
            return right_or_wrong(completion.strip() == row[self._settings.response].strip())
        call = RewardCall(prompt=row[self._settings.prompt], completion=completion, row=row)
        verdict = self._process.score([call])[0]
        if verdict.reward is None:
            return verdict
        passed = verdict.reward >= self._settings.pass_at
        return replace(verdict, passed=passed, parts={"correct": float(passed)})

    def close(self) -> None:
        """End the reward function's process."""
        if self._process is not None:
            self._process.close()


def _splits(settings: Jsonl) -> dict[Split, list[Row]]:
    train = _checked(settings.train, settings)
    if settings.eval:
        return {"train": train, "eval": _checked(settings.eval, settings)}
    if len(train) < 2:
        raise BadInput(
            f"{settings.train}: needed at least 2 rows, to train on one and hold one out, got 1"
        )
    held_out = min(max(1, int(len(train) * settings.eval_share)), len(train) - 1)
    return {"train": train[:-held_out], "eval": train[-held_out:]}


def _checked(path: str, settings: Jsonl) -> list[Row]:
    columns: dict[str, tuple[type, ...]] = {settings.prompt: (str, list)}
    if settings.response:
        columns[settings.response] = (str,)
    if settings.teacher:
        columns[settings.teacher] = (str,)
    rows = read_rows(path, columns)
    for row in rows:
        _messages(row, settings.prompt)
    return rows


def _messages(row: Row, column: str) -> list[dict[str, str]]:
    """Chat messages from a prompt column; raises BadInput unless the last is the user's."""
    prompt = row.values[column]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    for message in prompt:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            came = f"keys {sorted(message)}" if isinstance(message, dict) else kind(message)
            raise row.bad(f'column "{column}": needed messages {{role, content}}, got {came}')
        if message["role"] not in ROLES:
            needed = ", ".join(ROLES)
            raise row.bad(f'column "{column}": needed a role of {needed}, got {message["role"]!r}')
        if not isinstance(message["content"], str):
            came = kind(message["content"])
            raise row.bad(f'column "{column}": needed content that is a string, got {came}')
    if not prompt or prompt[-1]["role"] != "user" or not prompt[-1]["content"].strip():
        raise row.bad(f'column "{column}": needed text from the user at the end, got none')
    return prompt
