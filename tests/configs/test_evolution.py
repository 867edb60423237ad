"""Settings of evolution strategies: what is refused, what is warned of, what decodes."""

import msgspec
import pytest

from configs import run
from configs.algorithms.evolution import Es
from configs.consistency import problems
from configs.perturbations import AdamwStep, PlainStep
from configs.schema import Settings
from configs.tasks import Addition, Jsonl


def settings(es: Es, **changes) -> Settings:
    return Settings(**{"task": Addition(), "algorithm": es, **changes})


def notes(es: Es) -> list[str]:
    return [line for line in es.sentences(settings(es)) if line.startswith("Note: ")]


@pytest.mark.parametrize(
    ("es", "changes", "words"),
    [
        ({"population": 7}, {}, "algorithm.population = 7 needs to be even"),
        ({"layers": 0}, {}, "algorithm.layers = 0 perturbs nothing"),
        ({"population": 2}, {"actors": run.Actors(samplers=3)}, "actors.samplers = 3"),
        ({}, {"sampling": run.Sampling(temperature=0.5)}, "sampling.temperature has no effect"),
        ({}, {"optimizer": run.Optimizer(beta1=0.5)}, "optimizer has no effect"),
        ({}, {"task": Jsonl(train="a", response="b")}, "needs task.reward"),
        (
            {"fitness": "log_likelihood"},
            {"task": Jsonl(train="a", reward="b")},
            "needs task.response",
        ),
        ({"fitness": "log_likelihood", "temperature": 1.0}, {}, "temperature has no effect"),
    ],
)
def test_contradictions_are_named(es, changes, words):
    (sentence,) = problems(settings(Es(**es), **changes))
    assert words in sentence


@pytest.mark.parametrize(
    ("es", "changes"),
    [
        ({}, {}),
        ({"population": 7, "antithetic": False}, {}),
        ({"update": AdamwStep()}, {"optimizer": run.Optimizer(beta1=0.5)}),
        ({"fitness": "log_likelihood"}, {"task": Jsonl(train="a", response="b")}),
    ],
)
def test_what_can_run_passes(es, changes):
    assert list(problems(settings(Es(**es), **changes))) == []


def test_alpha_far_above_sigma_is_warned_of():
    (sentence,) = notes(Es(sigma=0.02, update=PlainStep(alpha=0.1)))
    assert "alpha = 0.1 is far above algorithm.sigma = 0.02: a step goes 5.0 sigma" in sentence
    assert not notes(Es(sigma=0.02, update=PlainStep(alpha=0.02)))
    assert not notes(Es(sigma=0.02, update=PlainStep(alpha=0.06), shaping="centered_ranks"))
    assert not notes(Es(update=AdamwStep()))


def test_settings_without_effect_cannot_be_written():
    def decode(algorithm: dict) -> Es:
        return msgspec.convert({"name": "es", **algorithm}, Es)

    tag = Es.__struct_config__.tag_field
    assert tag == "name"
    assert decode({"update": {"name": "plain", "alpha": 0.1}}).update == PlainStep(alpha=0.1)
    for wrong in (
        {"update": {"name": "adamw", "alpha": 0.1}},
        {"perturbation": {"name": "full_rank", "rank": 2}},
        {"perturbation": {"name": "low_rank", "vectors": True}},
        {"anchor": {"name": "none", "strength": 1.0}},
        {"anchor": {"name": "l2"}},
        {"population": 1},
        {"sigma": 0.0},
    ):
        with pytest.raises(msgspec.ValidationError):
            decode(wrong)
