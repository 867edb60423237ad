"""Each method keeps the right answers, and counts the others by reason."""

from typing import Any

import msgspec
import pytest

from configs.data_schema import DataSettings, Limits, Reasoning
from ops.make.choose import capped, choose, is_one_token, split, unfit
from ops.make.records import Answer, Candidate, Outcome, account, account_lines
from ops.make.rows import distinct, finished
from runtime.tasks.prompt import Prompt, Verdict
from tests.ops.making import settings

TEACHER = {"name": "recorded", "by": "somebody"}


def recipe(method: dict[str, Any], **tables: Any) -> DataSettings:
    teacher = {"name": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "m"}
    return settings(**{"teacher": teacher, "task": {"name": "addition"}, "method": method} | tables)


def candidate(
    prompt: int, sample: int, text: str, reward: float | None = None, **changes: Any
) -> Candidate:
    name = f"{prompt}/{sample}"
    verdict = None if reward is None else Verdict(reward=reward, passed=reward >= 1)
    fields = {"name": name, "key": 7, "text": text, "reasoning": "", "verdict": verdict,
              "prompt": Prompt(task="t", index=prompt, messages=[{"role": "user", "content": f"q{prompt}"}]),
              "answer": Answer(name=name, text=text, tokens=5)}  # fmt: skip
    return Candidate(**(fields | changes))


def outcome(
    settings: DataSettings, found: list[Candidate]
) -> tuple[list[dict[str, Any]], dict[str, Outcome]]:
    """Returns the rows without their provenance, and the count of every outcome."""
    drafts, outcomes = choose(settings, found)
    drafts, gone = distinct(drafts, settings)
    outcomes |= gone
    drafts, gone = capped(settings, drafts)
    outcomes |= gone
    rows, gone = finished(drafts, settings, TEACHER)
    outcomes |= gone
    assert account([c.name for c in found], outcomes, len(rows)).adds_up
    return [{k: v for k, v in row.items() if k != "made"} for row in rows], outcomes


def test_rejection_keeps_what_passes_in_the_order_of_the_prompts():
    found = [candidate(1, 0, "b", 1.0), candidate(1, 1, "c", 0.5), candidate(0, 0, "a", 1.0)]
    rows, outcomes = outcome(recipe({"name": "rejection"}), found)
    assert rows == [{"prompt": "q1", "response": "b"}, {"prompt": "q0", "response": "a"}]
    assert outcomes["1/1"] == ("rejected", "wrong")


def test_repetitions_do_not_take_the_places_of_others():
    found = [candidate(0, i, text, 1.0) for i, text in enumerate(["a", "a", "b", "c"])]
    rows, outcomes = outcome(recipe({"name": "rejection", "keep": 2}), found)
    assert [row["response"] for row in rows] == ["a", "b"]
    assert outcomes["0/1"] == ("duplicate", "exact") and outcomes["0/3"] == ("rejected", "surplus")


def test_near_repetitions_are_told_from_exact_ones():
    long = "the quick brown fox jumps over the lazy dog and runs away from here at once"
    found = [
        candidate(0, 0, long, 1.0),
        candidate(0, 1, long + " now", 1.0),
        candidate(0, 2, long, 1.0),
    ]
    near = recipe({"name": "rejection"}, dedup={"name": "near", "threshold": 0.7})
    _, outcomes = outcome(near, found)
    assert (outcomes["0/1"], outcomes["0/2"]) == (("duplicate", "near"), ("duplicate", "exact"))
    assert len(outcome(recipe({"name": "rejection"}, dedup={"name": "none"}), found)[0]) == 3


def test_a_verifier_that_says_nothing_is_a_failure_not_a_zero():
    silent = candidate(0, 0, "a", verdict=Verdict(reward=None, failure="timed_out"))
    _, outcomes = outcome(recipe({"name": "rejection"}), [silent, candidate(0, 1, "b")])
    assert outcomes == {
        "0/0": ("failed", "verifier_timed_out"),
        "0/1": ("failed", "verifier_silent"),
    }


def test_the_best_of_n_is_the_first_with_the_highest_reward():
    found = [candidate(0, i, t, r) for i, (t, r) in enumerate([("a", 0.2), ("b", 0.9), ("c", 0.9)])]
    rows, outcomes = outcome(recipe({"name": "best_of_n"}), found)
    assert rows == [{"prompt": "q0", "response": "b"}] and outcomes["0/2"] == (
        "rejected",
        "not_best",
    )
    rows, outcomes = outcome(recipe({"name": "best_of_n", "require_pass": True}), found)
    assert rows == [] and outcomes["0/1"] == ("rejected", "wrong")


def test_traces_keep_the_reasoning_in_front():
    found = [candidate(0, 0, "5", 1.0, reasoning="2 and 3"), candidate(0, 1, "6", 0.0, reasoning="?"),
             candidate(0, 2, "plain", 1.0)]  # fmt: skip
    rows, _ = outcome(recipe({"name": "traces"}), found)
    assert (
        rows[0]["response"] == "<think>\n2 and 3\n</think>\n\n5" and rows[2]["response"] == "plain"
    )
    strict = recipe({"name": "traces", "only_right": True, "require_reasoning": True})
    rows, outcomes = outcome(strict, found)
    assert len(rows) == 1 and outcomes["0/1"][1] == "wrong" and outcomes["0/2"][1] == "no_reasoning"


def test_step_by_step_makes_two_rows_of_an_answer():
    found = [candidate(0, 0, "2 and 3 are 5.\nAnswer: 5", 1.0), candidate(0, 1, "no mark", 1.0),
             candidate(1, 0, "Answer: 6", 1.0), candidate(1, 1, "7", 1.0, reasoning="seven")]  # fmt: skip
    rows, outcomes = outcome(recipe({"name": "step_by_step", "samples": 2}), found)
    assert rows == [
        {"prompt": "[label] q0", "response": "5", "part": "label"},
        {"prompt": "[rationale] q0", "response": "2 and 3 are 5.", "part": "rationale"},
        {"prompt": "[label] q1", "response": "7", "part": "label"},
        {"prompt": "[rationale] q1", "response": "seven", "part": "rationale"},
    ]
    assert outcomes["0/1"] == ("rejected", "no_label") and outcomes["1/0"] == (
        "rejected",
        "no_rationale",
    )


def test_pairs_are_of_the_best_and_the_worst_and_an_answer_is_in_one_only():
    found = [candidate(0, i, f"a{i}", reward) for i, reward in enumerate([0.1, 1.0, 0.5, 0.9, 0.5])]
    both = {"output": {"name": "preference", "pairs": 3, "margin": 0.2}}
    rows, outcomes = outcome(recipe({"name": "best_of_n"}, **both), found)
    assert rows == [{"prompt": "q0", "chosen": "a1", "rejected": "a0"},
                    {"prompt": "q0", "chosen": "a3", "rejected": "a4"}]  # fmt: skip
    assert outcomes["0/2"] == ("rejected", "surplus")


def test_rejection_s_pairs_are_right_against_wrong():
    found = [candidate(0, 0, "a", 2.0), candidate(0, 1, "b", 1.0),
             candidate(1, 0, "c", 1.0), candidate(1, 1, "d", 0.9)]  # fmt: skip
    rows, outcomes = outcome(recipe({"name": "rejection"}, output={"name": "preference"}), found)
    assert rows == [{"prompt": "q1", "chosen": "c", "rejected": "d"}]
    assert outcomes["0/0"] == ("rejected", "no_contrast")


def test_messages_stay_messages_where_asked_and_where_a_text_would_lose_some():
    many = Prompt(task="t", index=0, messages=[{"role": "system", "content": "s"},
                                                {"role": "user", "content": "u"}])  # fmt: skip
    found = [
        msgspec.structs.replace(candidate(0, 0, "a", 1.0), prompt=many),
        candidate(1, 0, "b", 1.0),
    ]
    rows, _ = outcome(recipe({"name": "rejection"}), found)
    assert rows[0]["prompt"] == many.messages and rows[1]["prompt"] == "q1"
    rows, _ = outcome(
        recipe({"name": "rejection"}, output={"name": "sft", "column": "messages"}), found
    )
    assert rows[1] == {"messages": [{"role": "user", "content": "q1"}], "response": "b"}


def test_one_token_is_kept_only_where_a_verifier_passed_it():
    short = {"answer": Answer(name="x", text="5", tokens=1)}
    found = [candidate(0, 0, "5", 1.0, **short), candidate(0, 1, "6", 0.0, **short)]
    _, outcomes = outcome(recipe({"name": "traces"}), found)
    assert (outcomes["0/0"], outcomes["0/1"]) == (("kept", ""), ("rejected", "one_token"))


@pytest.mark.parametrize(
    ("tokens", "model", "text", "is_one"),
    [
        (1, "", "counted", True),
        (2, "", "ab", False),
        (2, "m", "Yes", True),  # and the one that ends it
        (2, "m", "a b c d", False),
        (None, "m", "No", True),
        (None, "m", "Not at all", False),
        (3, "m", "No", False),
    ],
)
def test_one_token_is_noticed_however_a_server_counts(tokens, model, text, is_one):
    answer = Answer(name="x", text=text, tokens=tokens, model=model)
    assert is_one_token(candidate(0, 0, text, answer=answer)) == is_one


@pytest.mark.parametrize(("text", "reasoning", "found"), [
    ("<think>a\nb</think>\n\nc", "", ("a\nb", "c")),
    ("a</think>c", "", ("a", "c")),  # the template had begun it
    ("<think>a", "", ("a", "")),
    (" c ", " of the server ", ("of the server", "c")),
    ("c < d", "", ("", "c < d")),
])  # fmt: skip
def test_reasoning_is_split_from_the_answer(text, reasoning, found):
    assert split(text, reasoning, Reasoning()) == found


@pytest.mark.parametrize(("text", "stop", "outcome"), [
    ("abc", "stop", None),
    ("abc", "length", ("rejected", "truncated")),
    ("abc", "content_filter", ("rejected", "filtered")),
    ("", "stop", ("failed", "empty")),
    ("a", "stop", ("rejected", "too_short")),
    ("a" * 1_000_000, "stop", ("rejected", "too_long")),
])  # fmt: skip
def test_what_is_not_worth_judging_is_named(text, stop, outcome):
    assert unfit(text, stop, Limits(shortest_characters=2)) == outcome


def test_the_sum_is_said_by_kind():
    outcomes: dict[str, Outcome] = {"a": ("kept", ""), "b": ("rejected", "wrong"), "c": ("rejected", "wrong"),
                              "d": ("duplicate", "near"), "e": ("failed", "timed_out")}  # fmt: skip
    assert account_lines(account("abcde", outcomes, 1)) == [
        "  5 asked for",
        "= 1 kept",
        "+ 2 rejected (2 wrong)",
        "+ 1 duplicates (1 near)",
        "+ 1 failed (1 timed_out)",
    ]
