"""GSM8K (Cobbe et al. 2021): the answer is the number after the last ``####``.

Numbers are compared as normalised text and never converted, so the comparison is exact at any length. A line
with two numbers is no answer, so that hedging earns no reward.
"""

import re

from configs.tasks import Gsm8k
from runtime.jsonl import Row, read_rows
from runtime.tasks.finite import row_of
from runtime.tasks.procedural import right_or_wrong
from runtime.tasks.prompt import Prompt, Split, Verdict

MARK = "####"
CALCULATOR = re.compile(r"<<[^<>]*>>")
NUMBER = re.compile(r"[\s*$]*+(-?)\$?([0-9]{1,3}(?:,[0-9]{3})++|[0-9]++)(\.[0-9]++)?+(?!,?\w)")
"""Matches sign, integer digits with or without thousands separators, and decimals, unless a word follows
directly. The quantifiers are possessive: with backtracking, 10⁵ digits and a letter would take minutes."""


class Gsm8kTask:
    """A task with questions from two files; raises BadInput if a row's answer has no final number."""

    name = "gsm8k"

    def __init__(self, settings: Gsm8k, seed: int) -> None:
        self._seed = seed
        self._instruction = settings.instruction
        self._rows: dict[Split, list[Row]] = {
            "train": _checked(settings.train),
            "eval": _checked(settings.eval),
        }

    def size(self, split: Split) -> int | None:
        """Returns the number of rows of the split's file."""
        return len(self._rows[split])

    def prompt(self, split: Split, index: int) -> Prompt:
        """Returns a prompt with the question, a blank line and the instruction."""
        rows = self._rows[split]
        row = rows[row_of(split, index, len(rows), self._seed, self.name)]
        question, answer = row.values["question"], row.values["answer"]
        return Prompt(
            task=self.name,
            index=index,
            source=f"{row.path}, line {row.line}",
            messages=[{"role": "user", "content": f"{question}\n\n{self._instruction}".strip()}],
            truth=final_number(answer),
            demonstration=CALCULATOR.sub("", answer),
        )

    def verify(self, prompt: Prompt, completion: str) -> Verdict:
        """Returns a verdict: right if the final number is right; "format" is 1 if there is one."""
        number = final_number(completion)
        return right_or_wrong(number == prompt.truth, format=float(number is not None))

    def close(self) -> None:
        """Does nothing, because no process was started."""


def final_number(text: str) -> str | None:
    """Returns the number on the line of the last ``####``, normalised: ``$1,200.00.`` is "1200".

    Words may follow the number. Returns None if there is no number, or a second one.
    """
    _, mark, tail = text.rpartition(MARK)
    line = tail.strip().split("\n", 1)[0]
    found = NUMBER.match(line) if mark else None
    if not found or any(c.isnumeric() for c in line[found.end() :]):
        return None
    sign, whole, decimals = found.groups(default="")
    whole = whole.replace(",", "").lstrip("0") or "0"
    decimals = decimals.rstrip("0").rstrip(".")
    return f"{sign if (whole, decimals) != ('0', '') else ''}{whole}{decimals}"


def _checked(path: str) -> list[Row]:
    rows = read_rows(path, {"question": (str,), "answer": (str,)})
    for row in rows:
        if not row.values["question"].strip():
            raise row.bad('column "question": needed a question, got blank text')
        if final_number(row.values["answer"]) is None:
            raise row.bad(f'column "answer": needed a number after "{MARK}", found none')
    return rows
