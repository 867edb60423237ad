"""A step of every two settings together; `make soak` has the whole product (test_update.py)."""

import numpy as np
import pytest

from configs.consistency import problems
from tests.pairs import pairwise
from tests.policies import test_update
from tests.policies.test_update import (
    ADVANTAGES,
    CORRECTIONS,
    KLS,
    NORMALIZERS,
    SURROGATES,
    largest_gap,
    one_step,
    settings,
    stale,
)

policy, base, sampled = test_update.policy, test_update.base, test_update.sampled


def wanted(folder, surrogate, correction, normalizer, advantage, kl):
    return settings(
        folder, surrogate={"name": surrogate}, correction={"name": correction},
        normalizer=normalizer, advantage=advantage, kl=kl,
    )  # fmt: skip


def possible(*values) -> bool:
    return not list(problems(wanted("model", *values)))


CASES = pairwise(SURROGATES, CORRECTIONS, NORMALIZERS, ADVANTAGES, KLS, possible=possible)


def test_each_surrogate_meets_each_correction():
    assert len({case[:2] for case in CASES}) == len(SURROGATES) * len(CORRECTIONS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_two_settings_together_take_a_step(policy, base, sampled, case):
    report, after = one_step(policy, base, stale(sampled), wanted(policy.folder, *case))
    assert all(np.isfinite(value) for value in report.values()), report
    assert report["grad_norm"] > 0 and largest_gap(base, after) > 0
    assert report["mismatch_max"] == pytest.approx(0.1, abs=0.02)
    assert ("kl_reference" in report) == bool(case[-1])
