"""Preference learning as a run: it repeats bit for bit, adds up, and learns which answer is preferred."""

import pytest

from tests.actors.outcomes import outcomes

soak = pytest.mark.soak
COMPARED = ["preference_accuracy", "reward_margin"]
KINDS = ["pairs", "lora", "kto", "online"]
EACH = ["stopped", "paused while it learns", "learner died", "learner died unheard"]
OF_DATA = [*EACH, "paused while it compares", "learner died while it compared", "reader died"]


def by_turns(kinds: list[str], disturbances: list[str], each: int) -> list:
    """Returns every pair. Of each kind, so many are in `make test`, by turns; the others are soaks."""
    return [
        pytest.param(
            kind, what, marks=[soak] * ((which + each * number) % len(disturbances) >= each)
        )
        for number, kind in enumerate(kinds)
        for which, what in enumerate(disturbances)
    ]


DISTURBED = [
    *by_turns(["pairs", "lora", "kto"], OF_DATA, 3),
    *by_turns(["online"], [*EACH, "paused while it samples", "sampler died"], 6),
    *(("online", f"samplers: {samplers}") for samplers in (1, 3)),
    *((kind, "computed anew") for kind in ("pairs", "lora", "kto")),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    with outcomes("tests.actors.exact_preference", folder, timeout_s=120) as runs:
        yield runs


@pytest.mark.parametrize(("kind", "what"), DISTURBED)
def test_it_ends_as_the_undisturbed_run_does(runs, kind, what):
    one, other = runs(f"{kind}, {what}"), runs(kind)
    for part in ("step", "digests", "ledger", "evals", "noted", "log"):
        assert one[part] == other[part], part


def test_answers_as_messages_are_answers_as_strings(runs):
    for part in ("digests", "ledger", "evals", "log"):
        assert runs("messages")[part] == runs("pairs")[part], part


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_and_adds_up(runs, kind):
    result = runs(kind)
    ledger = result["ledger"]
    gone = sum(ledger["dropped"].values())
    assert ledger["pulled"] == ledger["trained"] + gone and ledger["in_flight"] == 0
    assert ledger["trained"] > 0 and (gone == 0 or kind == "online")
    assert any(line.get("grad_norm", 0) > 0 for line in result["metrics"])
    assert len({runs(name)["digests"][0] for name in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", ["pairs", "lora", "kto"])
def test_held_out_pairs_are_compared_with_the_reference(runs, kind):
    """The base is the reference, so that no answer has a reward yet: all are even."""
    evals = runs(kind)["evals"]
    assert [(step, metric) for step, metric, *_ in evals] == [
        (step, metric) for step in (0, 2, 4) for metric in COMPARED
    ]
    of_base, *_, of_end = ([e[2] for e in evals if e[0] == step] for step in (0, 2, 4))
    assert of_base == [0.5, 0.0]
    assert of_end[1] > 0


def test_evaluations_are_in_the_status_and_in_the_file(runs):
    result = runs("pairs")
    assert result["noted"] == [e[:3] for e in result["evals"]]
    assert [[e["step"], e["metric"], e["score"], e["n"]] for e in result["status"]] == result[
        "evals"
    ]


def test_answers_that_nothing_judges_are_not_sampled(runs):
    result = runs("pairs")
    assert {metric for _, metric, *_ in result["evals"]} == set(COMPARED)
    assert result["roles"] == ["conductor", "evaluator", "learner", "reader"]
    assert "sampler" in runs("online")["roles"]
    assert {metric for _, metric, *_ in runs("online")["evals"]} == {"pass@1"}


def test_without_pass_at_1_the_best_checkpoint_is_that_of_the_highest_accuracy(runs):
    result = runs("longer")
    scores = {
        step: score for step, metric, score, _ in result["evals"] if metric == COMPARED[0] and step
    }
    assert max(scores.values()) > 0.5
    best = max(scores, key=lambda step: (scores[step], -step))
    assert best < 8, "the best is the last, so that this shows nothing"
    assert result["kept"] == [best, 8]
