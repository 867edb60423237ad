"""In exact mode a run repeats bit for bit: again, from a checkpoint, and with actors that died."""

import pytest

from tests.actors.outcomes import outcomes

soak = pytest.mark.soak


def some(*names: str, soaked: tuple[str, ...] = ()) -> list:
    """Returns all names, those in `soaked` for `make soak` alone."""
    return [*names, *(pytest.param(name, marks=soak) for name in soaked)]


AS_PLAIN = some(
    "plain again", "one sampler", "stopped twice", "stopped and damaged",
    "stopped before a checkpoint", "sampler died", "verifier died", "evaluator died",
    "learner died before its work", "learner died unheard", "all died",
    soaked=(
        "stopped behind 1", "stopped behind 2", "stopped behind a checkpoint",
        "sampler died unheard", "learner died before its checkpoint",
        "learner died behind its checkpoint", "learner died before any checkpoint",
        "learner died while it was restored",
    ),
)  # fmt: skip
AS_LAGGING = some(
    "lagging, stopped", "lagging, learner died",
    soaked=("lagging, stopped long behind a checkpoint", "lagging, stopped and damaged"),
)  # fmt: skip
AS_ES = some(
    "three samplers", "stopped twice", "paused mid-generation", "a sampler joined late",
    "learner died unheard",
    soaked=(
        "one sampler", "stopped and damaged", "stopped before a checkpoint", "sampler died unheard",
        "learner died before its checkpoint", "learner died before any checkpoint", "all died",
    ),
)  # fmt: skip
AS_ES_OF_A_KIND = [
    pytest.param(kind, what, marks=[soak] * (one != other))
    for one, kind in enumerate(("full rank", "on data", "adapters"))
    for other, what in enumerate(("stopped", "paused mid-generation", "actors died"))
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    with outcomes("tests.actors.exact_runs", folder, timeout_s=120) as runs:
        yield runs


def assert_same(one: dict, other: dict) -> None:
    for part in ("step", "digests", "ledger", "evals", "log"):
        assert one[part] == other[part], part
    assert [m["step"] for m in one["metrics"]] == [m["step"] for m in other["metrics"]]


@pytest.mark.parametrize("name", AS_PLAIN)
def test_it_ends_as_the_undisturbed_run_does(runs, name):
    assert_same(runs(name), runs("plain"))


@pytest.mark.parametrize("name", AS_LAGGING)
def test_a_lagging_run_ends_as_the_undisturbed_one_does(runs, name):
    assert_same(runs(name), runs("lagging"))


@pytest.mark.parametrize("name", ["dynamic", "two updates"])
def test_so_does_one_with_more_rounds_or_more_updates(runs, name):
    assert_same(runs(f"{name}, stopped"), runs(name))


@pytest.mark.parametrize("name", AS_ES)
def test_evolution_ends_as_the_undisturbed_run_does(runs, name):
    assert_same(runs(f"es, {name}"), runs("es"))


@pytest.mark.parametrize(("kind", "what"), AS_ES_OF_A_KIND)
def test_so_does_evolution_of_another_kind(runs, kind, what):
    assert_same(runs(f"es, {kind}, {what}"), runs(f"es, {kind}"))


def test_evolution_gets_better_at_what_it_is_rewarded_for(runs):
    rewards = [line["reward_mean"] for line in runs("es, longer")["metrics"]]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2


def test_another_seed_or_another_setting_is_another_run(runs):
    names = ["plain", "another seed", "lagging", "dynamic", "two updates"]
    for which in range(3):
        assert len({runs(name)["digests"][which] for name in names}) == len(names)


def test_sampler_and_learner_log_probabilities_are_equal_bit_for_bit(runs):
    for name in ("plain", "another seed", "one sampler", "dynamic"):
        assert [line["mismatch_max"] for line in runs(name)["metrics"]] == [0.0] * 4
        assert all(line["mismatch_kl"] == 0.0 for line in runs(name)["metrics"])


def test_lagging_samplers_are_as_many_versions_behind_as_was_asked(runs):
    lines = runs("lagging")["metrics"]
    assert [line["staleness_versions"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert lines[0]["mismatch_max"] == 0 < min(line["mismatch_max"] for line in lines[1:])


def test_dynamic_sampling_replaces_groups_that_tell_nothing(runs):
    result = runs("dynamic")
    rounds = [line["sample_rounds"] for line in result["metrics"]]
    assert max(rounds) > 1 and all(1 <= n <= 3 for n in rounds)
    assert result["ledger"]["dropped"]["zero_variance"] > 0
    assert result["ledger"]["pulled"] > 4 * 4 * 2
