"""What a task hands out and what its verifier answers.

A task is any object with the methods of `Task`. Prompts are numbered: `index` is the position in
the stream that a run pulls from, so prompt n of a run is the same whoever asks, in whatever order.
A verifier that cannot judge says so: `reward` is then null, never zero.
"""

from collections.abc import Collection
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from runtime.errors import BadInput

Split = Literal["train", "eval"]


class Prompt(Struct, frozen=True, kw_only=True):
    """One question, and what its verifier needs to know."""

    task: str
    index: int
    messages: list[dict[str, str]]
    """Chat messages {role, content} for the checkpoint's own template; the last is the user's."""
    truth: Any = None
    """What the verifier compares with, as JSON values; never shown to the policy."""
    demonstration: str | None = None
    """An answer to imitate, or the preferred one of a pair, where the task has one."""
    rejected: str | None = None
    """An answer that `demonstration` is preferred to, where the task has one."""
    desirable: bool | None = None
    """Whether `demonstration` is a good answer, where it was judged alone."""
    teacher: str = ""
    """Whose answer it is to be (distillation); empty: the only one's."""
    source: str = ""
    """File and line that it came from; empty for a procedural one."""

    @property
    def place(self) -> str:
        """For an error: where a person finds it."""
        return self.source or f"task {self.task}, prompt {self.index}"


def check_teacher(prompt: Prompt, teachers: Collection[str]) -> None:
    """Raises BadInput for a prompt that names another teacher than these."""
    if prompt.teacher and prompt.teacher not in teachers:
        raise BadInput(
            f"{prompt.place}: needs a teacher of algorithm.teachers ({', '.join(teachers)}), got "
            f"{prompt.teacher!r}"
        )


class Verdict(Struct, frozen=True, kw_only=True):
    """What a verifier says of one answer."""

    reward: float | None
    """None if the verifier failed: then `failure` says how."""
    passed: bool | None = None
    """Counts for pass@1."""
    parts: dict[str, float] = field(default_factory=dict)
    """Named parts of the reward."""
    failure: str | None = None
    """The kind: "raised", "timed_out", "not_a_number", "died"."""
    detail: str = ""
    """One line for a person: the exception, the value that came."""


class Task(Protocol):
    """Prompts and a verifier."""

    name: str

    def size(self, split: Split) -> int | None:
        """How many prompts the split has; None for no end."""
        ...

    def prompt(self, split: Split, index: int) -> Prompt:
        """Prompt number `index` of the run's stream; a finite set is reshuffled at each pass."""
        ...

    def verify(self, prompt: Prompt, completion: str) -> Verdict:
        """Judge one answer. Does not raise for anything that the answer contains."""
        ...

    def close(self) -> None:
        """End processes that the task started."""
        ...
