"""The records of `make-data`: questions, answers, and their outcomes.

Question ── asked of a teacher ──▶ Answer | Failed
Answer ── split, judged ──▶ Candidate ── chosen by the method ──▶ Draft ── de-duplicated ──▶ row
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

from runtime.tasks.prompt import Prompt, Verdict


class Question(Struct, frozen=True, kw_only=True):
    """Holds one call of the teacher. `name` is its place in the recipe, such as "12/3"."""

    name: str
    key: int
    messages: list[dict[str, str]]
    """The messages; empty if the teacher continues the chat template's prefix up to the user's turn
    (Magpie).
    """


class Answer(Struct, frozen=True, kw_only=True, tag="answer"):
    """Holds the text of an answer."""

    name: str
    text: str
    reasoning: str = ""
    """The reasoning, where the endpoint splits it off."""
    stop: str = ""
    """The reason why the answer ended: "length" is cut short."""
    tokens: int | None = None
    """The number of tokens without the end token; None if an endpoint does not say."""
    model: str = ""
    """The model that an endpoint says has answered."""
    at: float = 0.0


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """Says that there is no answer, and that asking again would not help."""

    name: str
    kind: str
    reason: str = ""


class Begun(Struct, frozen=True, kw_only=True, tag="begun"):
    """Holds a local teacher's answer that was interrupted: its tokens so far."""

    name: str
    tokens: list[int]
    logprobs: list[float]


class Judged(Struct, frozen=True, kw_only=True, tag="judged"):
    """Holds the verifier's verdict on an answer."""

    name: str
    verdict: Verdict


class Candidate(Struct, frozen=True, kw_only=True):
    """Holds an answer that may become a row."""

    name: str
    key: int
    prompt: Prompt
    text: str
    """The final answer."""
    reasoning: str
    answer: Answer
    verdict: Verdict | None = None

    @property
    def passed(self) -> bool:
        """Returns whether the verifier passed the answer."""
        return self.verdict is not None and bool(self.verdict.passed)

    @property
    def reward(self) -> float:
        """Returns the reward of an answer that was judged."""
        assert self.verdict is not None and self.verdict.reward is not None
        return self.verdict.reward


class Draft(Struct, frozen=True, kw_only=True):
    """Holds rows that are kept or dropped together, and the candidates in them."""

    group: int
    """A number that drafts of the same prompt share."""
    uses: list[Candidate]
    rows: list[dict[str, Any]]
    text: str
    """The text by which the draft repeats another."""


Outcome = tuple[str, str]
"""An outcome: ("kept" | "rejected" | "duplicate" | "failed", reason)."""
KEPT: Outcome = ("kept", "")


class Account(Struct, frozen=True, kw_only=True):
    """Counts every answer that was asked for: asked = kept + rejected + duplicates + failed."""

    asked: int
    kept: int
    rejected: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    @property
    def adds_up(self) -> bool:
        """Returns whether nothing was lost or counted twice."""
        gone = (self.rejected, self.duplicates, self.failed)
        return self.asked == self.kept + sum(sum(part.values()) for part in gone)


def account(asked: Iterable[str], outcomes: Mapping[str, Outcome], rows: int) -> Account:
    """Returns the sum over all that was asked. Every answer has an outcome."""
    names = list(asked)
    parts: dict[str, Counter[str]] = {}
    for name in names:
        what, why = outcomes[name]
        parts.setdefault(what, Counter())[why] += 1

    def of(what: str) -> dict[str, int]:
        return dict(parts.get(what, Counter()).most_common())

    return Account(
        asked=len(names),
        kept=sum(of("kept").values()),
        rejected=of("rejected"),
        duplicates=of("duplicate"),
        failed=of("failed"),
        rows=rows,
    )


def account_lines(found: Account) -> list[str]:
    """Returns the sum for a person: a line for each kind."""

    def reasons(part: dict[str, int]) -> str:
        return f" ({', '.join(f'{n:,} {why}' for why, n in part.items())})" if part else ""

    lines = [f"  {found.asked:,} asked for", f"= {found.kept:,} kept"]
    for word, part in (
        ("rejected", found.rejected),
        ("duplicates", found.duplicates),
        ("failed", found.failed),
    ):
        lines.append(f"+ {sum(part.values()):,} {word}{reasons(part)}")
    return lines
