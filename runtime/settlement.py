"""The outcome of a trajectory, and the facts that decide it.

    Row       the trajectory's identity, its stop reason, the verifier's verdict
    Settled   the reward, the advantage and the reason for dropping it: columns of the record

An algorithm settles all rows of a step in one place, the conductor's process; the learner writes the results
into the record.
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
    """Number of sampled tokens."""
    stop_reason: str
    verdict: Verdict | None = None
    """The verifier's verdict; None if the task has no verifier."""
    dropped: str | None = None
    """The reason if the row is dropped before it is judged, because it is too long."""

    @property
    def reward(self) -> float | None:
        """Returns the verifier's reward; None without one."""
        return None if self.verdict is None else self.verdict.reward

    @property
    def failure(self) -> str | None:
        """Returns the kind of failure if the verifier failed, else None."""
        return None if self.verdict is None else self.verdict.failure


class Settled(Struct, frozen=True, kw_only=True):
    """The outcome of one trajectory."""

    reward: float | None = None
    passed: bool | None = None
    parts: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    advantage: float | None = None
    dropped: str | None = None
    pair: int | None = None
    preference: int | None = None
    """1 for the preferred answer of its pair, -1 for the rejected one; None keeps the record's value."""


class Settlement(Struct, frozen=True, kw_only=True):
    """The outcomes of all rows of a step, in their order."""

    rows: list[Settled]
    useful_prompts: int
    """Number of prompts whose answers give a gradient; a further round may replace the others."""


def settled(row: Row, **changes: object) -> Settled:
    """Returns a row's outcome by its verdict, with `changes` on top."""
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
    """Returns the ledger with these outcomes: each trajectory is trained on, dropped or failed."""
    rows = list(rows)
    failures = [row.failure for row in rows if row.failure is not None]
    reasons = [row.dropped for row in rows if row.dropped is not None and row.failure is None]
    return ledger.settle(len(rows) - len(failures) - len(reasons), reasons, failures)
