"""`pippin ledger`: the outcome of every trajectory of a run, and whether long ones get lost.

The counts are the ledger's, from status.json; the lengths are those of the trajectory log. The two are
written at different moments and by different actors, so a remark says where they disagree.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct

from ops.table import Table
from runtime.errors import BadInput, PippinError
from runtime.rundir import RunDirectory
from runtime.status import Status
from runtime.trajectory import StopReason, lists
from runtime.trajectory_log import batches

BINS = 16
BARS = "▁▂▃▄▅▆▇█"
NOTABLE = 0.2
"""The relative difference of mean lengths from which on a sentence is printed."""

Outcome = tuple[str, str]
"""The outcome of a trajectory, and its reason: ("trained", ""), ("dropped", reason), ("failed", kind)."""
TRAINED: Outcome = ("trained", "")
ORDER = ("trained", "dropped", "failed")


class Counts(Struct, frozen=True, kw_only=True):
    """Holds the ledger as status.json has it."""

    pulled: int = 0
    trained: int = 0
    dropped: dict[str, int] = {}
    failed: dict[str, int] = {}
    in_flight: int = 0


class Lengths(Struct, frozen=True, kw_only=True):
    """Holds the lengths of the trajectories of one outcome, in tokens."""

    outcome: str
    reason: str
    rows: int
    mean: float
    median: float
    p95: int
    largest: int
    histogram: list[int]
    """Rows in each bin; all outcomes share the bins, which begin at 0 tokens."""


class Account(Struct, frozen=True, kw_only=True):
    """Holds everything that `pippin ledger` knows."""

    run: str
    state: str
    step: int
    steps: int
    ledger: Counts
    adds_up: bool
    verdict: str
    """A sentence that says whether the ledger adds up."""
    log_rows: int
    log_last_step: int
    """The last step in the log; 0 if there are no rows."""
    measured: str
    """The unit of a trajectory's length: "sampled tokens", or for data "tokens of the answer"."""
    bin_tokens: int
    lengths: list[Lengths]
    remarks: list[str]
    """A sentence each: where log and ledger disagree, and lost trajectories whose lengths differ from
    trained ones.
    """
    problem: str
    """The reason why the log could be read only so far; empty if it could be read."""


class _Log:
    """Collects the lengths of the log's trajectories by outcome, and how many the steps have noted."""

    def __init__(self, noted_step: int) -> None:
        self._noted_step = noted_step
        self.lengths: dict[Outcome, list[int]] = defaultdict(list)
        self.noted: Counter[Outcome] = Counter()
        """Rows of steps that the ledger has as well."""
        self.ahead = 0
        """Rows of later steps."""
        self.last_step = 0
        self.data = False

    @property
    def rows(self) -> int:
        return self.noted.total() + self.ahead

    def add(self, batch: pa.RecordBatch) -> None:
        columns = (batch[name].to_pylist() for name in ("step", "dropped", "failure"))
        for step, dropped, failure, length in zip(*columns, self._lengths(batch), strict=True):
            outcome = (
                ("failed", failure) if failure else ("dropped", dropped) if dropped else TRAINED
            )
            self.lengths[outcome].append(length)
            self.last_step = max(self.last_step, step)
            if step <= self._noted_step:
                self.noted[outcome] += 1
            else:
                self.ahead += 1

    def _lengths(self, batch: pa.RecordBatch) -> list[int]:
        if not batch.num_rows or batch["stop_reason"][0].as_py() != StopReason.DATA:
            return [int(sampled.sum()) for sampled in lists(batch, "sampled")]
        self.data = True
        tokens = (len(tokens) for tokens in lists(batch, "tokens"))
        return [n - p for n, p in zip(tokens, batch["prompt_tokens"].to_pylist(), strict=True)]


def account(run: RunDirectory) -> Account:
    """Returns the account of a run's status and log, whether the run is active or not. Raises BadInput
    if there is no such run or its status is damaged. A damaged log is reported in the account, with
    what comes before the damage.
    """
    status = run.read_status()
    counts = _counts(run, status)
    log, problem = _read(run, status.step)
    longest = max((max(lengths) for lengths in log.lengths.values()), default=0)
    bin_tokens = longest // BINS + 1
    ordered = sorted(log.lengths.items(), key=lambda item: (ORDER.index(item[0][0]), item[0][1]))
    verdict = _verdict(counts)
    remarks = [*_disagreements(counts, status, log), *_lost_lengths(dict(ordered))]
    return Account(
        run=status.name,
        state=status.state,
        step=status.step,
        steps=status.steps,
        ledger=counts,
        adds_up=not verdict,
        verdict=verdict or "it adds up",
        log_rows=log.rows,
        log_last_step=log.last_step,
        measured="tokens of the answer" if log.data else "sampled tokens",
        bin_tokens=bin_tokens,
        lengths=[_profile(outcome, found, bin_tokens) for outcome, found in ordered],
        remarks=remarks,
        problem=problem,
    )


def account_parts(account: Account) -> list[str | Table]:
    """Returns an account for reading, to be printed."""
    parts: list[str | Table] = [
        f"{account.run}: {account.state}, step {account.step} of {account.steps}",
        "",
        *_sum(account.ledger),
        f"  {account.verdict}",
        "",
    ]
    if account.lengths:
        title = f"{account.measured} by the trajectory log, {account.log_rows:,} rows"
        parts += [f"{title} up to step {account.log_last_step}", _table(account)]
    else:
        parts.append("no trajectories in the log yet")
    return [*parts, "", *account.remarks] if account.remarks else parts


# ── the two sources ──────────────────────────────────────────────────────────────────────────────


def _counts(run: RunDirectory, status: Status) -> Counts:
    try:
        return msgspec.convert(status.ledger, Counts)
    except msgspec.ValidationError as error:
        path = run.path / "status.json"
        raise BadInput(f"{path}: its ledger is damaged: {error}") from None


def _read(run: RunDirectory, noted_step: int) -> tuple[_Log, str]:
    """Returns the log as far as it can be read, and the reason why it cannot be read further."""
    log = _Log(noted_step)
    try:
        for batch in batches(run.trajectories):
            log.add(batch)
    except PippinError as error:
        return log, str(error)
    except OSError as error:
        return log, f"{run.trajectories}: cannot be read: {error.strerror or error}"
    except KeyError as error:
        return log, f"{run.trajectories}: holds a batch that lacks a column: {error}"
    return log, ""


# ── what they say ────────────────────────────────────────────────────────────────────────────────


def _verdict(counts: Counts) -> str:
    """Returns why the ledger does not add up; empty if it does."""
    settled = counts.trained + sum(counts.dropped.values()) + sum(counts.failed.values())
    parts = [
        counts.trained, *counts.dropped.values(), *counts.failed.values(), counts.in_flight,
    ]  # fmt: skip
    if counts.in_flight < 0:
        return f"it does not add up: {-counts.in_flight:,} were settled twice"
    if min(parts) < 0:
        return "it does not add up: a count is negative"
    if missing := counts.pulled - settled - counts.in_flight:
        what = "are missing" if missing > 0 else "are too many"
        return f"it does not add up: {abs(missing):,} {what}"
    return ""


def _disagreements(counts: Counts, status: Status, log: _Log) -> list[str]:
    found = []
    ledger = Counter[Outcome](
        {
            TRAINED: counts.trained,
            **{("dropped", reason): n for reason, n in counts.dropped.items()},
            **{("failed", kind): n for kind, n in counts.failed.items()},
        }
    )
    differ = [o for o in sorted({*ledger, *log.noted}) if ledger[o] != log.noted[o]]
    if differ:
        each = ", ".join(f"{_name(*o)} {log.noted[o]:,} against {ledger[o]:,}" for o in differ)
        found.append(f"Up to step {status.step} log and ledger disagree: {each}.")
    if log.ahead:
        found.append(
            f"The log goes on to step {log.last_step}: {log.ahead:,} of its rows are not in the "
            f"ledger, which stands at step {status.step}."
        )
    return found


def _lost_lengths(lengths: Mapping[Outcome, Sequence[int]]) -> list[str]:
    """Returns one sentence if what is lost has another mean length than what is trained on."""
    trained = lengths.get(TRAINED)
    lost = {_name(*outcome): found for outcome, found in lengths.items() if outcome != TRAINED}
    if not trained or not lost or not (usual := float(np.mean(trained))):
        return []
    everything = [n for found in lost.values() for n in found]
    compared = {"all that was lost": everything, **lost} if len(lost) > 1 else lost
    ratios = {name: float(np.mean(found)) / usual - 1 for name, found in compared.items()}
    parts = [
        f"{name} is {abs(ratio):.0%} {'longer' if ratio > 0 else 'shorter'}"
        for name, ratio in ratios.items()
        if abs(ratio) > NOTABLE
    ]
    if not parts:
        return []
    return [f"Against what was trained on (mean {usual:.1f} tokens), {', '.join(parts)}."]


def _profile(outcome: Outcome, found: Sequence[int], bin_tokens: int) -> Lengths:
    lengths = np.array(found)
    return Lengths(
        outcome=outcome[0],
        reason=outcome[1],
        rows=len(lengths),
        mean=float(lengths.mean()),
        median=float(np.median(lengths)),
        p95=int(np.percentile(lengths, 95, method="inverted_cdf")),
        largest=int(lengths.max()),
        histogram=np.bincount(lengths // bin_tokens, minlength=BINS).tolist(),
    )


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def _sum(counts: Counts) -> list[str]:
    """Returns the ledger as a sum, a line for each of its terms."""
    parts = [
        ("=", counts.trained, "trained"),
        *(("+", n, _name("dropped", reason)) for reason, n in counts.dropped.items()),
        *(("+", n, _name("failed", kind)) for kind, n in counts.failed.items()),
        ("+", counts.in_flight, "in flight"),
    ]
    width = max(len(f"{n:,}") for n in (counts.pulled, *(n for _, n, _ in parts)))
    return [
        f"{sign} {n:>{width},} {what}" for sign, n, what in [(" ", counts.pulled, "pulled"), *parts]
    ]


def _table(account: Account) -> Table:
    top = BINS * account.bin_tokens - 1
    return Table(
        header=(
            "", "rows", "mean", "median", "p95", "max", f"0 to {top}, {account.bin_tokens} a bar"
        ),
        rows=[
            (
                _name(profile.outcome, profile.reason),
                f"{profile.rows:,}",
                f"{profile.mean:.1f}",
                f"{profile.median:g}",
                f"{profile.p95}",
                f"{profile.largest}",
                _bars(profile.histogram),
            )
            for profile in account.lengths
        ],
        left=(0, 6),
        gives_way=(6, 0),
        indent=2,
    )  # fmt: skip


def _bars(histogram: Sequence[int]) -> str:
    """Returns a character for each bin, relative to the fullest. A bin that is not empty is visible."""
    most = max(histogram)
    return "".join(BARS[(n * len(BARS) - 1) // most] if n else "·" for n in histogram)


def _name(outcome: str, reason: str) -> str:
    """Returns an outcome for reading. A log is a file, and its content may not be printable."""
    shown = "".join(c if c.isprintable() else "?" for c in reason[:40])
    return f"{outcome}: {shown}" if reason else outcome
