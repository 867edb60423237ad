"""A local generator's answers depend on the keys alone: stopped and gone on with, they are the same."""

from pathlib import Path

import mlx.core as mx
import pytest

from configs.model import Model
from policies.generators.local import LocalGenerator
from policies.generators.protocol import Answer, Begun, Query
from policies.load import load_frozen
from policies.sampling import Sampling
from tests.actors import tiny

SAMPLING = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tiny.checkpoint(tmp_path_factory.mktemp("teacher") / "model")
    return load_frozen(Model(path=str(folder)), folder)


def query(number: int, **changes) -> Query:
    messages = [{"role": "user", "content": f"{number}+1="}]
    return Query(name=str(number), key=1000 + number, messages=messages, **changes)


def answers(policy, queries: list[Query], sampling: Sampling = SAMPLING, steps: int = 10_000):
    left = iter(range(steps))
    generator = LocalGenerator(policy, slots=4)
    made = list(generator.generate(queries, sampling, lambda: next(left, None) is not None))
    assert generator.sampled_tokens == sum(answer.new_tokens or 0 for answer in made)
    return {answer.name: answer for answer in made}


@pytest.mark.parametrize("steps", [1, 4, 9, 15])
def test_an_interrupted_answer_goes_on_to_the_same_end(policy, steps):
    whole = answers(policy, [query(i) for i in range(7)])
    assert {answer.stop for answer in whole.values()} <= {"stop", "length"}
    first = answers(policy, [query(i) for i in range(7)], steps=steps)
    begun = {n: Begun(ids=a.ids, logprobs=a.logprobs) for n, a in first.items() if a.interrupted}
    assert begun
    missing = [i for i in range(7) if str(i) in begun or str(i) not in first]
    second = answers(policy, [query(i, begun=begun.get(str(i))) for i in missing])
    for name, answer in (first | second).items():
        assert (answer.ids, answer.text) == (whole[name].ids, whole[name].text)
        assert answer.logprobs == pytest.approx(whole[name].logprobs, abs=1e-4)


def test_an_answer_is_given_when_it_ends_and_not_when_all_have(policy):
    queries, asked, given = [query(i) for i in range(7)], [], []

    def may_continue() -> bool:
        asked.append(len(given))
        return True

    for answer in LocalGenerator(policy, slots=4).generate(queries, SAMPLING, may_continue):
        given.append(answer.name)
    assert sorted(given) == [q.name for q in queries]
    assert any(0 < count < 7 for count in asked)


def test_a_prompt_that_does_not_fit_is_a_failure_and_the_others_are_answered(policy):
    long = Query(name="long", key=1, messages=[{"role": "user", "content": "1" * 5000}])
    found = answers(policy, [long, query(0), Query(name="none", key=2, messages=[], ids=())])
    assert found["long"].failure == "prompt_too_long" and "tokens, room for" in found["long"].reason
    assert found["none"].failure == "prompt_empty"
    assert found["0"].text and not found["0"].failure


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_a_failure(tmp_path: Path, temperature):
    folder = tiny.checkpoint(tmp_path / "model")
    broken = load_frozen(Model(path=str(folder)), folder)
    project = broken.project
    broken.project = lambda hidden: project(hidden) * mx.nan
    (found,) = answers(
        broken, [query(0)], Sampling(temperature=temperature, max_new_tokens=3)
    ).values()
    assert isinstance(found, Answer) and found.failure == "nan_logits"
