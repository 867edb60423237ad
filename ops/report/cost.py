"""Adds up from a run's metrics what its student cost up to the checkpoint that is measured."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from ops.report.contestants import Side
from runtime.status import PASS_AT_1

ROLES = ("learner", "teacher", "sampler", "verifier")
UNEQUAL = 0.10
"""The share of the smaller by which the work of two runs must differ to count as unequal compute."""


class Cost(Struct, frozen=True, kw_only=True):
    """Holds the cost of one run. Seconds are by the clock, while an actor worked; evaluations are not
    counted.
    """

    run: str
    algorithm: str
    step: int
    learner_s: float
    teacher_s: float
    sampler_s: float
    verifier_s: float
    work_s: float
    """The sum of the seconds, which is compared."""
    hosted: bool
    """True if the teachers work in the learner's process: their seconds are the learner's."""
    teacher_tokens: int
    """The tokens scored or sampled by teachers with processes of their own."""
    cached_share: float | None
    """The share of the rows that such teachers were asked about that were known already."""
    sampled_tokens: int
    trained_tokens: int
    lost_steps: int
    """The number of steps whose metrics are damaged: not counted."""
    curve: list[tuple[int, float, float]]
    """Step, seconds of work until then, and held-out score of each of the run's own evaluations."""


def cost_of(side: Side) -> Cost:
    """Returns the cost from metrics.jsonl and evals.jsonl up to the step."""
    lines = [line for line in side.run.read_lines("metrics.jsonl") if line["step"] <= side.step]
    worked = {role: sum(line.get(f"{role}_busy_s", 0.0) for line in lines) for role in ROLES}
    shares = [s for line in lines if (s := line.get("teacher_cached_share")) is not None]
    settings = side.settings
    return Cost(
        run=side.run.name,
        algorithm=settings.facts.label,
        step=side.step,
        learner_s=worked["learner"],
        teacher_s=worked["teacher"],
        sampler_s=worked["sampler"],
        verifier_s=worked["verifier"],
        work_s=sum(worked.values()),
        hosted=settings.facts.hosts_teachers,
        teacher_tokens=_total(lines, "teacher_tokens"),
        cached_share=sum(shares) / len(shares) if shares else None,
        sampled_tokens=_total(lines, "sampler_tokens"),
        trained_tokens=_total(lines, "trained_tokens"),
        lost_steps=side.step - len(lines),
        curve=_curve(side, lines),
    )


def unequal(cost: Cost, other: Cost) -> bool:
    """Returns whether the work times of two runs are too different for "equal compute"."""
    small, large = sorted((cost.work_s, other.work_s))
    return large > small * (1 + UNEQUAL)


def cached(cost: Cost) -> bool:
    """Returns whether some of the teachers' work was done earlier, perhaps for another run."""
    return bool(cost.cached_share)


def _curve(side: Side, lines: Sequence[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """Returns each evaluation of the run's own, with the seconds of work until it."""
    points = []
    for result in side.run.read_lines("evals.jsonl"):
        if result["metric"] != PASS_AT_1 or result["score"] is None or result["step"] > side.step:
            continue
        until = [line for line in lines if line["step"] <= result["step"]]
        spent = sum(line.get(f"{role}_busy_s", 0.0) for line in until for role in ROLES)
        points.append((result["step"], spent, result["score"]))
    return points


def _total(lines: Sequence[dict[str, Any]], name: str) -> int:
    return round(sum(line.get(name, 0.0) for line in lines))
