"""Metrics of a step's answers that several algorithms report."""

from collections.abc import Sequence

from runtime.metrics import mean
from runtime.settlement import Row


def of_answers(rows: Sequence[Row]) -> dict[str, float]:
    """Returns metrics of rewards, lengths and stop reasons of the judged answers; {} if there are none."""
    judged = [row for row in rows if row.verdict is not None]
    if not judged:
        return {}
    return {**of_rewards(judged), **of_lengths(judged)}


def of_rewards(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the mean reward, the pass rate, and the share of answers that could not be scored."""
    passed = [row.verdict.passed for row in rows if row.verdict is not None]
    return {
        "reward_mean": mean([row.reward for row in rows if row.reward is not None]),
        "pass_at_1": mean([float(p) for p in passed if p is not None]),
        "failed_share": mean([float(row.failure is not None) for row in rows]),
    }


def of_lengths(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the mean length of the answers, and the shares that stopped and that were truncated."""
    return {
        "completion_tokens_mean": mean([float(row.tokens) for row in rows]),
        "stop_share": mean([float(row.stop_reason == "stop") for row in rows]),
        "truncated_share": mean([float(row.stop_reason == "length") for row in rows]),
    }
