"""What is asked, what came, and what became of it: the records of `make-data`.

Question ── asked of a teacher ──▶ Answer | Failed
Answer ── split, judged ──▶ Candidate ── chosen by the method ──▶ Draft ── de-duplicated ──▶ row
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

from runtime.tasks.prompt import Prompt, Verdict


class Question(Struct, frozen=True, kw_only=True):
    """One call of the teacher. `name` is its place in the recipe, such as "12/3"."""

    name: str
    key: int
    messages: list[dict[str, str]]
    """Empty: what comes behind the chat template's prefix up to the user's turn (Magpie)."""


class Answer(Struct, frozen=True, kw_only=True, tag="answer"):
    """Text that came."""

    name: str
    text: str
    reasoning: str = ""
    """Where the endpoint splits it off."""
    stop: str = ""
    """Why it ended: "length" is cut short."""
    tokens: int | None = None
    """Without the one that ends it; None if an endpoint does not say."""
    model: str = ""
    """What an endpoint says has answered."""
    at: float = 0.0


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """Nothing came, and asking again would not help."""

    name: str
    kind: str
    reason: str = ""


class Begun(Struct, frozen=True, kw_only=True, tag="begun"):
    """A local teacher's answer that was interrupted: its tokens so far."""

    name: str
    tokens: list[int]
    logprobs: list[float]


class Judged(Struct, frozen=True, kw_only=True, tag="judged"):
    """What the verifier said of an answer."""

    name: str
    verdict: Verdict


class Candidate(Struct, frozen=True, kw_only=True):
    """An answer that may become a row."""

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
        """Returns whether the verifier passed it."""
        return self.verdict is not None and bool(self.verdict.passed)

    @property
    def reward(self) -> float:
        """Returns what it was judged to be worth; only of one that was."""
        assert self.verdict is not None and self.verdict.reward is not None
        return self.verdict.reward


class Draft(Struct, frozen=True, kw_only=True):
    """Rows that stand or fall together, and the candidates in them."""

    group: int
    """Drafts with one number are of the same prompt."""
    uses: list[Candidate]
    rows: list[dict[str, Any]]
    text: str
    """By which it repeats another."""


Outcome = tuple[str, str]
""" ("kept" | "rejected" | "duplicate" | "failed", why)."""
KEPT: Outcome = ("kept", "")


class Account(Struct, frozen=True, kw_only=True):
    """Every answer that was asked for: asked = kept + rejected + duplicates + failed."""

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
    """Returns the sum over all that was asked; a outcome is missing for none."""
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
    """Returns the sum for a person: a line a kind."""

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
