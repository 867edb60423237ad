"""A step's metrics under their public names: rates, and what each role waited."""

import math
from collections.abc import Mapping

from runtime.metrics import METRICS


def step_metrics(raw: Mapping[str, float], seconds: float | None = None) -> dict[str, float]:
    """Returns the metrics of a step. Waits are among them where the step's own seconds are known."""
    values = dict(raw)
    teacher = ("teacher",) if "teacher_busy_s" in values else ()
    for role in ("sampler", "learner", "verifier", *teacher):
        busy = values.setdefault(f"{role}_busy_s", 0.0)
        if seconds is not None:
            values["step_seconds"] = seconds
            values[f"{role}_wait_s"] = max(seconds - busy, 0.0)
    values["sampler_tokens_per_s"] = _rate(
        values.get("sampler_tokens", 0), values["sampler_busy_s"]
    )
    if teacher:
        values["teacher_tokens_per_s"] = _rate(values["teacher_tokens"], values["teacher_busy_s"])
    values["learner_tokens_per_s"] = _rate(
        values.pop("learner_tokens", 0), values["learner_busy_s"]
    )
    # JSON has no NaN: a number that is none is left out.
    return {n: float(values[n]) for n in METRICS if n in values and math.isfinite(values[n])}


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
