"""What distillation asks of the settings together: a sentence for each contradiction."""

from typing import Any

import msgspec
import pytest

from configs.consistency import problems
from configs.schema import Settings

LOCAL = {"name": "local", "path": "/teacher"}
API = {"name": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "m"}
TEXT = {"learn_from": {"name": "teacher"}, "signal": {"name": "text"}}
SAMPLED = {"name": "sampled"}
JSONL = {"name": "jsonl", "train": "/t.jsonl"}


def settings(distill: dict[str, Any] | None = None, **tables: Any) -> Settings:
    algorithm = {"name": "distill", "teachers": {"big": LOCAL}} | (distill or {})
    return msgspec.convert({"task": {"name": "sorting"}, "algorithm": algorithm} | tables, Settings)


@pytest.mark.parametrize(
    "distill",
    [
        {},
        TEXT,
        TEXT | {"teachers": {"api": API}},
        {"signal": SAMPLED},
        {"signal": {"name": "top_k"}, "learn_from": {"name": "mixed"}},
        {"learn_from": {"name": "student", "reward": 0.5, "group_size": 4}},
        {"learn_from": {"name": "data", "divergence": {"name": "skewed_forward", "skew": 0.3}}},
    ],
)
def test_what_works_is_let_through(distill) -> None:
    assert list(problems(settings(distill))) == []


@pytest.mark.parametrize(
    ("distill", "tables", "words"),
    [
        ({"signal": {"name": "text"}}, {}, 'needs algorithm.learn_from.name = "teacher"'),
        ({"signal": {"name": "text"}, "learn_from": {"name": "data"}}, {}, 'algorithm "sft"'),
        (
            {"signal": SAMPLED, "learn_from": {"name": "mixed"}},
            {},
            "tokens that the student sampled",
        ),
        (
            {"signal": SAMPLED, "learn_from": {"name": "student", "divergence": {"name": "jsd"}}},
            {},
            "it is reverse KL",
        ),
        (TEXT | {"learn_from": {"name": "teacher", "alpha": 0.7}}, {}, "alpha has no effect"),
        ({"learn_from": {"name": "student", "reward": 1.0}}, {}, "group_size >= 2, got 1"),
        ({"teachers": {}}, {}, "needs at least one table"),
        ({"teachers": {"api": API}}, {}, "algorithm.teachers.api is an endpoint"),
        ({"teachers": {"big": LOCAL | {"system": "x"}}}, {}, "big.system has no effect"),
        ({"teachers": {"a": LOCAL, "b": LOCAL}}, {}, "the others would idle"),
        ({"cache_gb": 1.0}, {}, "cache_gb has no effect"),
        ({}, {"task": JSONL | {"teacher": "w"}, "eval": {"prompts": 0}}, "there is one teacher"),
        (
            {"learn_from": {"name": "data"}},
            {"task": JSONL | {"reward": "/r.py"}},
            "needs task.response",
        ),
        ({}, {"task": JSONL}, "0 for no evaluation"),
        (
            {"learn_from": {"name": "student", "reward": 1.0, "group_size": 2}},
            {"task": JSONL | {"response": "r"}},
            "needs task.reward",
        ),
        ({}, {"task": JSONL | {"reward": "/r.py"}, "eval": {"prompts": 0}}, "task.reward has no"),
        ({}, {"task": JSONL | {"response": "r"}, "eval": {"prompts": 0}}, "task.response has no"),
        ({"learn_from": {"name": "data"}}, {"sampling": {"temperature": 0.5}}, "eval.temperature"),
        ({"prompts_per_step": 1}, {"actors": {"samplers": 2}}, "the others would idle"),
        ({}, {"actors": {"micro_batch_tokens": 64}}, "must exceed"),
    ],
)
def test_contradictions_are_named(distill, tables, words) -> None:
    found = list(problems(settings(distill, **tables)))
    assert len(found) == 1 and words in found[0], found


@pytest.mark.parametrize(
    "learn_from",
    [
        {"name": "student", "divergence": {"name": "jsd", "beta": 0.05}},
        {"name": "student", "divergence": {"name": "jsd", "beta": 1.0}},
        {"name": "data", "alpha": 0.0},
        {"name": "mixed", "student_share": 1.0},
        {"name": "data", "divergence": {"name": "skewed_reverse", "skew": 1.0}},
        {"name": "student", "divergence": {"name": "forward", "beta": 0.5}},
    ],
)
def test_a_degenerate_parameter_cannot_be_written_down(learn_from) -> None:
    with pytest.raises(msgspec.ValidationError):
        settings({"learn_from": learn_from})


def test_only_distillation_has_teachers() -> None:
    wanted = settings({}, algorithm={"name": "sft"}, task=JSONL | {"response": "r", "teacher": "t"})
    assert any("task.teacher has no effect" in sentence for sentence in problems(wanted))


@pytest.mark.parametrize(
    ("distill", "actors", "hosted", "token_level"),
    [
        ({}, False, True, True),
        ({"signal": SAMPLED}, True, False, True),
        (TEXT, True, False, False),
        ({"learn_from": {"name": "teacher"}}, True, True, True),
    ],
)
def test_where_the_teachers_are(distill, actors, hosted, token_level) -> None:
    facts = settings(distill).facts
    found = facts.asks_teachers, facts.hosts_teachers, facts.shares_tokens
    assert found == (actors, hosted, token_level)
