"""The user's own task: prompts in JSONL, with answers scored by a Python function or only imitated.

The reward function gets the whole row, so the data that it compares with can be in other columns. Without a
reward function (SFT), an answer passes if it equals the row's response. Without a response either (a teacher
answers), nothing is judged.
"""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from configs.tasks import Jsonl
from runtime.errors import BadInput
from runtime.jsonl import Row, read_rows
from runtime.reward_process import RewardCall, RewardProcess
from runtime.tasks.finite import row_of
from runtime.tasks.messages import Messages, prompt_messages
from runtime.tasks.preferences import judged, judged_columns, pair, pair_columns
from runtime.tasks.procedural import right_or_wrong
from runtime.tasks.prompt import Prompt, Split, Verdict


class RowsTask:
    """A task with rows of one or two files, and the process of its reward function if there is one.

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
        """Returns the number of rows of the split."""
        return len(self._rows[split])

    def prompt(self, split: Split, index: int) -> Prompt:
        """Returns the row's prompt, whose `truth` is the whole row."""
        rows = self._rows[split]
        row = rows[row_of(split, index, len(rows), self._seed, self.name)]
        messages, answer, rejected, desirable = _read(row, self._settings)
        return Prompt(
            task=self.name,
            index=index,
            source=f"{row.path}, line {row.line}",
            messages=messages,
            truth=row.values,
            demonstration=answer,
            rejected=rejected,
            desirable=desirable,
            teacher=row.values[self._settings.teacher] if self._settings.teacher else "",
        )

    def verify(self, prompt: Prompt, completion: str) -> Verdict:
        """Returns the reward function's verdict, or that of equality with the response.

        With a reward function an answer passes from the reward `pass_at` on. The function gets the completion
        unchanged, with surrounding whitespace.
        """
        row: dict[str, Any] = prompt.truth
        if self._process is None and (self._settings.label or not self._settings.response):
            return Verdict(reward=None)
        if self._process is None:
            return right_or_wrong(completion.strip() == row[self._settings.response].strip())
        asked = row.get(self._settings.prompt, prompt.messages)
        call = RewardCall(prompt=asked, completion=completion, row=row)
        verdict = self._process.score([call])[0]
        if verdict.reward is None:
            return verdict
        passed = verdict.reward >= self._settings.pass_at
        return replace(verdict, passed=passed, parts={"correct": float(passed)})

    def close(self) -> None:
        """Ends the reward function's process."""
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
    if settings.chosen:
        columns = pair_columns(settings.chosen, settings.rejected)
        if settings.response:
            columns[settings.response] = (str,)
    elif settings.label:
        columns = judged_columns(settings.response, settings.label)
    elif settings.response:
        columns[settings.response] = (str,)
    if settings.teacher:
        columns[settings.teacher] = (str,)
    rows = read_rows(path, columns)
    for row in rows:
        _read(row, settings)
    return rows


def _read(row: Row, settings: Jsonl) -> tuple[Messages, str | None, str | None, bool | None]:
    """Returns a row's prompt, its answer to imitate or to prefer, the rejected one, and the label.

    Raises BadInput that names file, line and column for a row that has another form.
    """
    if settings.chosen:
        found = pair(
            row, prompt=settings.prompt, chosen=settings.chosen, rejected=settings.rejected
        )
        return found.messages, found.chosen, found.rejected, None
    if settings.label:
        alone = judged(
            row, prompt=settings.prompt, completion=settings.response, label=settings.label
        )
        return alone.messages, alone.completion, None, alone.desirable
    answer = row.values[settings.response] if settings.response else None
    return prompt_messages(row, settings.prompt), answer, None, None
