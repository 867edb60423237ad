"""The findings follow from the measurements, on made-up numbers for which the answer is known."""

import math
from html import escape

import pytest

from ops.curve import bars, curve, marks
from ops.report.contestants import Contestant
from ops.report.cost import Cost
from ops.report.findings import (
    Judged,
    comparison,
    judged,
    notes,
    perplexity,
    promise,
    size_text,
    standing,
    stderr,
)
from ops.report.measure import Measured
from ops.report.page import Report, page
from runtime.tasks.prompt import Prompt

PROMPTS = [
    Prompt(task="t", index=i, messages=[], demonstration="abc", teacher=["a", "b"][i % 2])
    for i in range(4)
]


def measured(passed: list[bool | None], **changes) -> Measured:
    values = {
        "tokenizer": "one",
        "parameters": 100,
        "weights_bytes": 400,
        "peak_bytes": 1000,
        "passed": passed,
        "nats": [2.0, 2.0, 2.0, 2.0],
        "answer_tokens": [4, 4, 4, 4],
        "tokens_per_s": [100.0, 100.0, 100.0],
    }
    return Measured(**{**values, **changes})


def contestant(role: str, key: str = "") -> Contestant:
    return Contestant(name=f"the {role} {key}".strip(), role=role, key=key, where=f"{role}-folder")  # type: ignore[arg-type]


def cost(run: str, work_s: float, **changes) -> Cost:
    values = {
        "run": run,
        "algorithm": "sft",
        "step": 4,
        "learner_s": work_s,
        "teacher_s": 0.0,
        "sampler_s": 0.0,
        "verifier_s": 0.0,
        "work_s": work_s,
        "hosted": False,
        "teacher_tokens": 0,
        "cached_share": None,
        "sampled_tokens": 0,
        "trained_tokens": 10,
        "lost_steps": 0,
        "curve": [(0, 0.0, 0.1), (4, work_s, 0.5)],
    }
    return Cost(**{**values, **changes})


TEACHER, STUDENT = contestant("teacher", "a"), contestant("after")


def claims(big: Measured, small: Measured, prompts: list[Prompt] = PROMPTS) -> dict[str, object]:
    found = {TEACHER.name: big, STUDENT.name: small}
    said = promise(TEACHER, STUDENT, found, judged(found, len(prompts)), prompts)
    return {claim.what: claim for claim in said}


# ── the promise ──────────────────────────────────────────────────────────────────────────────────


def test_a_promise_is_kept_or_missed_by_its_numbers():
    big = measured([True] * 4)
    fast = measured([True] * 4, tokens_per_s=[1000.0] * 3, weights_bytes=40, peak_bytes=501)
    found = claims(big, fast)
    assert [claim.kept for claim in found.values()] == [True, True, True, False]
    assert found["speed"].value == 10.0 and found["memory of the weights"].value == 0.1
    assert found["peak memory of decoding"].verdict == "missed"


def test_the_speed_up_is_of_each_round():
    big = measured([True] * 4, tokens_per_s=[10.0, 1.0, 10.0])
    found = claims(big, measured([True] * 4, tokens_per_s=[120.0, 12.0, 120.0]))
    assert found["speed"].value == pytest.approx(12.0)


def test_a_teacher_is_compared_on_its_own_prompts():
    found = claims(measured([True, False, True, False]), measured([True, False, False, True]))
    assert found["quality"].value == 0.5  # of prompts 0 and 2


def test_where_the_teacher_passes_nothing_its_perplexity_is_compared():
    surer = measured([False] * 4, nats=[4 * math.log(2)] * 4)
    found = claims(surer, measured([False] * 4, nats=[4 * math.log(4)] * 4))
    assert found["quality"].value == pytest.approx(0.5)
    assert (
        "perplexity per token since the teacher passes nothing: 4.000 against 2.000"
        in found["quality"].sentence
    )
    other = measured([False] * 4, nats=[3 * math.log(8)] * 4, tokenizer="another")
    assert claims(surer, other)["quality"].value == pytest.approx(2 ** (4 / 3) / 8)


def test_without_a_verifier_nothing_is_claimed():
    nobody = measured([None] * 4, nats=[None] * 4)
    quality = claims(nobody, nobody)["quality"]
    assert (quality.value, quality.kept, quality.verdict) == (None, None, "unknown")


# ── all models on the same prompts ────────────────────────────────────────────────────────────────


def test_a_prompt_that_one_model_could_not_answer_counts_for_none():
    found = {"x": measured([True, None, True, True]), "y": measured([False, True, True, True])}
    found["y"].nats = [None, 1.0, 1.0, 1.0]
    on = judged(found, 4)
    assert (on.answers, on.texts) == ([0, 2, 3], [1, 2, 3])
    row = standing(contestant("after"), found["y"], on, PROMPTS)
    assert row.quality == pytest.approx(2 / 3)
    assert row.perplexity_per_token == pytest.approx(math.exp(3 / 12))
    assert row.perplexity_per_byte == pytest.approx(math.exp(3 / 9))
    said = notes([], found, on, [])
    assert said[0].startswith("1 of 4 prompts are left out") and "1 of 4 right answers" in said[1]


def test_students_differ_only_beyond_chance_and_unequal_compute_is_said():
    found = {STUDENT.name: measured([True] * 4), "the against b": measured([False] * 4)}
    other, on = contestant("against", "b"), judged(found, 4)
    student = contestant("after", "a")
    found[student.name] = found.pop(STUDENT.name)
    costs = {"a": cost("a", 10.0), "b": cost("b", 10.9)}
    said = comparison(student, other, found, costs, on, PROMPTS)
    assert "better than the against b by pass rate (+1.000 ± 0.000" in said
    assert "at about equal compute: 10.0 s of work against 10.9 s" in said
    costs["b"] = cost("b", 11.2)
    found["the against b"].passed = [True, True, True, False]
    said = comparison(student, other, found, costs, on, PROMPTS)
    assert "not distinguishable from" in said and "NOT at equal compute" in said
    found["the against b"].passed = [False] * 4
    one = Judged(on.answers[:1], on.texts)
    assert "not distinguishable from" in comparison(student, other, found, costs, one, PROMPTS)
    found["the against b"].tokenizer = "another"
    costs["b"] = cost("b", 10.0, cached_share=0.4)
    said = comparison(student, other, found, costs, on, PROMPTS)
    assert "perplexity per byte" in said
    assert "(earlier teacher outputs are in neither)" in said


def test_what_a_reader_must_know_is_noted():
    found = {"x": measured([True] * 4), "y": measured([True] * 4, tokenizer="another")}
    folders = [contestant("before"), contestant("against", "b")]
    costs = [cost("a", 1.0, lost_steps=2), cost("b", 1.0, hosted=True, cached_share=0.4)]
    said = " ".join(notes(folders, found, judged(found, 4), costs))
    for words in (
        "tokenizers differ",
        "same checkpoint",
        "2 steps are lost",
        "learner's process",
        "40% of its teacher outputs",
    ):
        assert words in said


def test_small_statistics():
    assert stderr([1.0]) == 0.0 and stderr([0.0, 1.0]) == pytest.approx(0.5)
    assert perplexity(0.0, 0) is None
    sizes = [size_text(size) for size in (7, 999, 1500, 123_456, 2_500_000, 3e9)]
    assert sizes == ["7 B", "999 B", "1.5 kB", "123 kB", "2.5 MB", "3.00 GB"]


# ── the page and its pictures ────────────────────────────────────────────────────────────────────

HOSTILE = '<script>alert("x")</script>&'


def named(name: str) -> Contestant:
    return Contestant(name=name, role="teacher", where=name)


def report(**changes) -> Report:
    found = {"the before": measured([True] * 4)}
    on = judged(found, 4)
    values = {
        "run": HOSTILE, "step": 1, "steps": 2, "state": HOSTILE, "algorithm": HOSTILE, "task": HOSTILE,
        "prompts": 4, "judged": 4, "texts": 4, "made": HOSTILE, "machine": HOSTILE, "backend": HOSTILE,
        "batch": HOSTILE, "promise": {}, "comparisons": [HOSTILE], "costs": [cost(HOSTILE, 1.0)],
        "notes": [HOSTILE],
        "contestants": [
            standing(named(HOSTILE), found["the before"], on, PROMPTS),
            standing(named("far"), None, on, PROMPTS),
        ],
    }  # fmt: skip
    return Report(**{**values, **changes})


def test_nothing_that_comes_from_outside_becomes_markup():
    made = page(report())
    assert "<script" not in made
    assert made.count(escape(HOSTILE)) > 10


def test_what_is_not_known_is_a_dash():
    made = page(report(costs=[]))
    assert "<td>–</td>" in made and "were not evaluated while they learned" in made


def test_a_curve_has_the_range_that_it_is_given():
    svg = curve([("falls", [(0, 40.0), (10, 20.0)])], "x", "y", (0.0, 40.0), [("best", 10.0)])
    assert ">40<" in svg and ">best<" in svg
    assert 'cy="16.0"' in svg and 'cy="146.0"' in svg  # the top, and half of the way down


def test_marks_are_the_points_unless_they_would_crowd():
    assert marks([0, 20, 40], 40) == [0, 20, 40]
    assert marks([i / 7 for i in range(300)], 299 / 7) == [0, 10, 20, 30, 40]


def test_a_bar_that_is_not_known_is_text_alone():
    svg = bars(["one", "two"], [("speed", [(2.0, 0.5, "2"), (None, 0.0, "–")])])
    assert svg.count("<rect") == 2 and ">–<" in svg  # the ground and one bar
