"""An endpoint as a generator: it asks while it may, and what comes has the name of its query."""

from configs.teachers import EndpointTeacher
from policies.generators.endpoint import EndpointGenerator
from policies.generators.protocol import Query
from policies.sampling import Sampling
from tests.runtime.test_endpoint import completion, reply, serving

QUERIES = [
    Query(name=f"q{i}", key=i, messages=[{"role": "user", "content": str(i)}]) for i in range(6)
]
SAMPLING = Sampling(temperature=0.5, max_new_tokens=9)


def echo(handler, request, number):
    text = request["messages"][-1]["content"]
    if text == "3":
        reply(handler, b"no", status=400)
    else:
        reply(handler, completion(f"{request['messages'][0]['content']} {text}"))


def generator(url: str) -> EndpointGenerator:
    return EndpointGenerator(EndpointTeacher(url=url, model="m", system="count", concurrency=2))


def test_answers_and_failures_come_under_the_names_of_their_queries():
    with serving(echo) as server:
        made = list(generator(server.url).generate(QUERIES, SAMPLING, lambda: True))
        assert {(r["temperature"], r["max_tokens"]) for r in server.requests} == {(0.5, 9)}
    found = {answer.name: answer for answer in made}
    assert found.keys() == {query.name for query in QUERIES}
    assert found["q3"].failure == "rejected" and not found["q3"].text
    for i in (0, 1, 2, 4, 5):
        answer = found[f"q{i}"]
        assert (answer.text, answer.failure, answer.stop) == (f"count {i}", "", "stop")
        assert (answer.new_tokens, answer.ids, answer.interrupted) == (2, [], False)


def test_nothing_is_asked_once_it_may_not_go_on():
    left = iter([True, True, True])
    with serving(echo) as server:
        made = list(generator(server.url).generate(QUERIES, SAMPLING, lambda: next(left, False)))
        assert len(server.requests) == 3
    assert sorted(answer.name for answer in made) == ["q0", "q1", "q2"]
