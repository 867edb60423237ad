"""A sampler that is not the learner's policy fails the step, unless it is only stale."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import SettingsError
from configs.consistency import check
from configs.run import Mismatch
from policies.arrays import Arrays
from policies.load import load_policy
from policies.policy import Policy
from policies.weights import digest
from runtime.errors import RunFailed
from runtime.mismatch import mismatch_doubt
from runtime.trajectory import with_columns
from tests.actors.tiny import settings as tiny
from tests.policies.test_update import base, one_step, policy, sampled, settings

__all__ = ["base", "policy", "sampled"]


def off_by(batch, nats: float):
    moved = [[p and p - nats for p in row] for row in batch["logprobs"].to_pylist()]
    return with_columns(batch, {"logprobs": moved})


def older(batch):
    versions = [
        [v if v < 0 else v - 1 for v in row] for row in batch["weights_version"].to_pylist()
    ]
    return with_columns(batch, {"weights_version": versions})


def test_a_difference_of_a_tenth_of_a_nat_fails_before_the_weights_change(
    policy: Policy, base: Arrays, sampled
) -> None:
    with pytest.raises(
        RunFailed, match=r"0\.15 nats apart .* update 1, .*mismatch\.fail_nats = 0\.1"
    ):
        one_step(policy, base, off_by(sampled, 0.15), settings(policy.folder))
    assert digest(policy.trained()) == digest(base)


def test_a_smaller_one_is_reported_and_warned_of(policy: Policy, base: Arrays, sampled) -> None:
    report, after = one_step(policy, base, off_by(sampled, 0.05), settings(policy.folder))
    assert report["mismatch_mean"] == pytest.approx(0.05, abs=1e-3)
    assert digest(after) != digest(base)
    assert "0.05 nats apart" in mismatch_doubt(report, Mismatch())
    exact, _ = one_step(policy, base, sampled, settings(policy.folder))
    assert exact["mismatch_mean"] < 1e-4 and mismatch_doubt(exact, Mismatch()) == ""


def test_staleness_is_not_judged(policy: Policy, base: Arrays, sampled) -> None:
    report, _ = one_step(policy, base, older(off_by(sampled, 3.0)), settings(policy.folder))
    assert report["mismatch_max"] > 2 and "mismatch_mean" not in report
    assert mismatch_doubt(report, Mismatch()) == ""


def test_later_updates_of_a_step_are_not_judged(policy: Policy, base: Arrays, sampled) -> None:
    wanted = settings(policy.folder, updates_per_step=4)
    report, _ = one_step(policy, base, off_by(sampled, 0.099), wanted)
    assert report["mismatch_mean"] == pytest.approx(0.099, abs=1e-3)


def test_weights_that_give_no_numbers_are_named_as_the_cause(tmp_path: Path, sampled) -> None:
    wanted = settings(Path(tiny(tmp_path).model.path))
    broken = load_policy(wanted.model, Path(wanted.model.path), seed=0)
    weights = {name: array * float("nan") for name, array in broken.trained().items()}
    with pytest.raises(RunFailed, match="the model gives NaN or infinite logits") as caught:
        one_step(broken, weights, sampled, wanted)
    assert "try a lower" not in str(caught.value)


def test_a_warning_behind_the_failure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mismatch\.warn_nats = 1 must not exceed"):
        check(tiny(tmp_path, mismatch={"warn_nats": 1.0}))


ALONE = "PIPPIN_TEST_ALONE"
"""Set in the process of its own that the test below runs in: NaN weights have ended a shared worker."""


def test_a_loss_that_is_no_number_is_explained_in_a_process_of_its_own() -> None:
    name = f"{__file__}::test_a_loss_that_is_no_number_names_the_logits_not_the_learning_rate"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", name]
    done = subprocess.run(
        command, env={**os.environ, ALONE: "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@pytest.mark.skipif(ALONE not in os.environ, reason="runs in a process of its own, see above")
def test_a_loss_that_is_no_number_names_the_logits_not_the_learning_rate(
    tmp_path: Path, sampled
) -> None:
    """Also where nothing was sampled by the learner's own weights, so that no mismatch is judged."""
    wanted = settings(Path(tiny(tmp_path).model.path))
    broken = load_policy(wanted.model, Path(wanted.model.path), seed=0)
    weights = {name: array * float("nan") for name, array in broken.trained().items()}
    with pytest.raises(RunFailed, match=r"the loss is nan at update 1: the model gives NaN"):
        one_step(broken, weights, older(sampled), wanted)
