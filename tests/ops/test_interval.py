"""An interval never claims to know a share exactly."""

import pytest

from ops.interval import share_text, wilson
from ops.show import eval_line
from runtime.status import PASS_AT_1, REWARD_MARGIN, EvalResult


def result(score: float, stderr: float, n: int, metric: str = PASS_AT_1) -> EvalResult:
    return EvalResult(
        step=0, task="t", metric=metric, score=score, n=n, stderr=stderr,
        mean_tokens=1.0, truncated=0.0, failed=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "n", "interval"),
    [(0.0, 128, (0.0, 0.029)), (1.0, 128, (0.971, 1.0)), (1, 1, (0.207, 1))],
)
def test_wilson_s_interval_has_a_width_where_all_are_alike(share: float, n: int, interval) -> None:
    assert wilson(share, n) == pytest.approx(interval, abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_is_never_plus_or_minus_nothing(share: float) -> None:
    line = eval_line(result(share, 0.0, 20), result(share, 0.0, 20))
    assert "± 0.000" not in line and "95 % interval" in line and "(n = 20)" in line


def test_a_margin_without_a_spread_has_no_interval() -> None:
    one = result(2.5, 0.0, 1, REWARD_MARGIN)
    assert eval_line(one, one).endswith(": 2.500 (n = 1)")


def test_an_ordinary_share_has_its_standard_error() -> None:
    assert share_text(0.25, 0.038, 128) == "0.250 ± 0.038"
