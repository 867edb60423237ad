"""What is known about a trajectory outside its batch, and what was decided about it.

    Row       who it is, how it ended, what the verifier said
    Settled   the reward, the advantage and why it is not trained on: columns of the record

An algorithm turns all rows of a step into settlements in one place, the conductor's process; the learner
writes them into the record.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

from msgspec import Struct, field

from runtime.ledger import Ledger
from runtime.tasks.prompt import Verdict


class Row(Struct, frozen=True, kw_only=True):
    """One trajectory of a step, without its tokens."""

    prompt: int
    sample: int
    tokens: int
    """Sampled tokens."""
    stop_reason: str
    verdict: Verdict | None = None
    """None where nothing judges the answer."""
    dropped: str | None = None
    """Why it cannot be trained on, known before anything is judged: it is too long."""

    @property
    def reward(self) -> float | None:
        """The verifier's reward; None without one."""
        return None if self.verdict is None else self.verdict.reward

    @property
    def failure(self) -> str | None:
        """The kind of a reward that could not be had."""
        return None if self.verdict is None else self.verdict.failure


class Settled(Struct, frozen=True, kw_only=True):
    """What was decided about one trajectory."""

    reward: float | None = None
    passed: bool | None = None
    parts: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    advantage: float | None = None
    dropped: str | None = None
    pair: int | None = None
    preference: int | None = None
    """1 for the preferred answer of its pair, -1 for the rejected one; None leaves the record's as it is."""


class Settlement(Struct, frozen=True, kw_only=True):
    """The decisions about all rows of a step, in their order."""

    rows: list[Settled]
    useful_prompts: int
    """Prompts whose answers teach something: the others may be replaced in a further round."""


def settled(row: Row, **changes: object) -> Settled:
    """Returns the verdict of a row as its settlement, with `changes` on top."""
    verdict = row.verdict or Verdict(reward=None)
    values: dict[str, object] = {
        "reward": verdict.reward,
        "passed": verdict.passed,
        "parts": verdict.parts,
        "failure": verdict.failure,
        "dropped": row.dropped,
    }
    return Settled(**{**values, **changes})  # type: ignore[arg-type]


def groups(rows: Sequence[Row]) -> Iterable[list[int]]:
    """Yields the positions of the rows of each prompt, prompts and samples in ascending order."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].prompt, rows[i].sample))
    for _, group in groupby(order, key=lambda i: rows[i].prompt):
        yield list(group)


def entered(ledger: Ledger, rows: Iterable[Settled]) -> Ledger:
    """Returns the ledger once these trajectories are learned: each is trained on, dropped or failed."""
    rows = list(rows)
    failures = [row.failure for row in rows if row.failure is not None]
    reasons = [row.dropped for row in rows if row.dropped is not None and row.failure is None]
    return ledger.settle(len(rows) - len(failures) - len(reasons), reasons, failures)
