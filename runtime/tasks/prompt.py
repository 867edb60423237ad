"""The prompts of a task, and the verdicts of its verifier.

A task is any object with the methods of `Task`. Prompts are numbered: `index` is the position in
the stream that a run pulls from, so prompt n of a run is the same in every process and in any order.
If a verifier cannot judge an answer, `reward` is null, never zero.
"""

from collections.abc import Collection
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from runtime.errors import BadInput
from runtime.plain_text import printable

Split = Literal["train", "eval"]


class Prompt(Struct, frozen=True, kw_only=True):
    """One question, with the data that its verifier needs."""

    task: str
    index: int
    messages: list[dict[str, str]]
    """Chat messages {role, content} for the checkpoint's own template; the last is the user's."""
    truth: Any = None
    """The values that the verifier compares with, as JSON values; never shown to the policy."""
    demonstration: str | None = None
    """An answer to imitate, or the preferred answer of a pair, if the task has one."""
    rejected: str | None = None
    """An answer to which `demonstration` is preferred, if the task has one."""
    desirable: bool | None = None
    """True if `demonstration` is a desirable answer, false if not; None unless it was judged alone."""
    teacher: str = ""
    """Name of the prompt's teacher (distillation); empty if there is only one."""
    source: str = ""
    """File and line of the prompt; empty for a procedural one."""

    @property
    def place(self) -> str:
        """Returns the place of the prompt for an error: file and line, or task and number."""
        return self.source or f"task {self.task}, prompt {self.index}"


def check_teacher(prompt: Prompt, teachers: Collection[str]) -> None:
    """Raises BadInput for a prompt that names a teacher that is not in `teachers`."""
    if prompt.teacher and prompt.teacher not in teachers:
        raise BadInput(
            f"{prompt.place}: needs a teacher of algorithm.teachers ({', '.join(teachers)}), got "
            f"'{printable(prompt.teacher)}'"
        )


class Verdict(Struct, frozen=True, kw_only=True):
    """A verifier's verdict on one answer."""

    reward: float | None
    """The reward; None if the verifier failed, and then `failure` has the kind."""
    passed: bool | None = None
    """True if the answer passed, which counts for pass@1."""
    parts: dict[str, float] = field(default_factory=dict)
    """Named parts of the reward."""
    failure: str | None = None
    """Kind of failure: "raised", "timed_out", "not_a_number", "out_of_range", "out_of_memory", "forged" or
    "died"."""
    detail: str = ""
    """One line for the user, such as the exception or the value that came."""


class Task(Protocol):
    """A source of prompts, with a verifier."""

    name: str

    def size(self, split: Split) -> int | None:
        """Returns the number of prompts of the split; None if there is no end."""
        ...

    def prompt(self, split: Split, index: int) -> Prompt:
        """Returns prompt number `index` of the run's stream; a finite set is reshuffled at each pass."""
        ...

    def verify(self, prompt: Prompt, completion: str) -> Verdict:
        """Judges one answer. Does not raise for anything that the answer contains."""
        ...

    def close(self) -> None:
        """Ends the processes that the task started."""
        ...
