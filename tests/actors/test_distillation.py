"""Distillation as a run: it repeats bit for bit, adds up, and a teacher like the student teaches nothing."""

import pytest

from tests.actors.outcomes import outcomes

soak = pytest.mark.soak
KINDS = ["full", "top-k", "sampled", "reward to go", "data", "mixed", "text", "text and full"]
CACHED = ("top-k", "sampled", "data", "text")
"""The kinds of which a teacher's outputs are kept, and found by the run that comes second."""


def by_turns(kinds: list[str], disturbances: list[str]) -> list:
    """Returns every pair. One disturbance of each kind is in `make test`, by turns; the others are soaks."""
    return [
        pytest.param(kind, what, marks=[soak] * (which != number % len(disturbances)))
        for number, kind in enumerate(kinds)
        for which, what in enumerate(disturbances)
    ]


DISTURBED = [
    *((kind, "again") for kind in CACHED),
    *(pytest.param(kind, "again", marks=soak) for kind in KINDS if kind not in CACHED),
    *by_turns(KINDS, ["stopped", "learner died", "learner died unheard"]),
    *by_turns(["full", "top-k", "sampled", "mixed"], ["sampler died", "paused while it samples"]),
    *by_turns(
        ["top-k", "sampled", "data", "mixed", "text"],
        ["teacher died", "teacher died unheard", "paused while it teaches"],
    ),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    with outcomes("tests.actors.exact_distillation", folder, timeout_s=300) as runs:
        yield runs


@pytest.mark.parametrize(("kind", "what"), DISTURBED)
def test_it_ends_as_the_undisturbed_run_does(runs, kind, what):
    one, other = runs(f"{kind}, {what}"), runs(kind)
    for part in ("step", "digests", "ledger", "evals", "log"):
        assert one[part] == other[part], part


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_and_adds_up(runs, kind):
    result = runs(kind)
    ledger = result["ledger"]
    assert ledger["pulled"] == ledger["trained"] == 4 * 8 and ledger["in_flight"] == 0
    assert all(line["grad_norm"] > 0 for line in result["metrics"])
    assert all(line.get("unusable_tokens", 0) == 0 for line in result["metrics"])
    assert len({runs(name)["digests"][0] for name in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", ["full", "top-k", "sampled"])
def test_a_teacher_like_the_student_teaches_exactly_nothing(runs, kind):
    for line in runs(f"{kind}, by itself")["metrics"]:
        assert line["loss"] == line["grad_norm"] == line["divergence"] == 0
    assert runs(f"{kind}, by itself")["digests"][0] == runs("full, by itself")["digests"][0]


@pytest.mark.parametrize("kind", CACHED)
def test_what_a_teacher_said_before_is_not_asked_again(runs, kind):
    # "again" runs before the kind's own run, which finds all in the cache.
    assert all(line["teacher_cached_share"] == 1 for line in runs(kind)["metrics"])
    assert runs(f"{kind}, again")["metrics"][0]["teacher_cached_share"] < 1


def test_a_reward_counts_beside_the_teacher(runs):
    result = runs("rewarded")
    assert result["ledger"]["pulled"] == 4 * 8 * 4
    assert all(
        0 <= line["reward_mean"] <= 1 and line["divergence"] > 0 for line in result["metrics"]
    )


def test_the_teacher_comes_nearer(runs):
    lines = runs("full")["metrics"]
    assert lines[-1]["divergence"] < lines[0]["divergence"]
