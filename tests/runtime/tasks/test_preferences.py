"""Rows of preferences: the three shapes in which they come, and what is refused of each."""

import json
from pathlib import Path

import pytest

from ops.make.choose import choose
from ops.make.records import Answer, Candidate
from ops.make.rows import encoded, finished
from runtime.errors import BadInput
from runtime.jsonl import read_rows
from runtime.tasks.preferences import (
    Judged,
    Pair,
    judged,
    judged_columns,
    pair,
    pair_columns,
)
from runtime.tasks.prompt import Prompt, Verdict
from tests.ops.making import settings

USER = {"role": "user", "content": "Q"}
SYSTEM = {"role": "system", "content": "Short."}
ASKED = [SYSTEM, USER]


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pairs(path: Path) -> list[Pair]:
    rows = read_rows(path, pair_columns("chosen", "rejected"))
    return [pair(row, prompt="prompt", chosen="chosen", rejected="rejected") for row in rows]


def pair_of(folder: Path, values: dict) -> Pair:
    (folder / "rows.jsonl").write_text(json.dumps(values) + "\n")
    return pairs(folder / "rows.jsonl")[0]


def judged_of(folder: Path, values: dict) -> Judged:
    (folder / "rows.jsonl").write_text(json.dumps(values) + "\n")
    row = read_rows(folder / "rows.jsonl", judged_columns("completion", "label"))[0]
    return judged(row, prompt="prompt", completion="completion", label="label")


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, [USER]),
        ({"prompt": ASKED, "chosen": "a", "rejected": "b", "made": {}}, ASKED),
        ({"prompt": ASKED, "chosen": [says("a")], "rejected": [says("b")]}, ASKED),
        ({"prompt": "Q", "chosen": [USER, says("a")], "rejected": [USER, says("b")]}, [USER]),
        ({"prompt": "Q", "chosen": [USER, says("a")], "rejected": "b"}, [USER]),
        ({"chosen": [*ASKED, says("a")], "rejected": [*ASKED, says("b")]}, ASKED),
        (
            {
                "chosen": [USER, says("x"), USER, says("a")],
                "rejected": [USER, says("x"), USER, says("b")],
            },
            [USER, says("x"), USER],
        ),
    ],
)
def test_a_pair_is_read_in_every_shape(tmp_path, values, messages):
    assert pair_of(tmp_path, values) == Pair(messages, "a", "b")


def test_equal_and_empty_answers_are_kept_word_for_word(tmp_path):
    assert pair_of(tmp_path, {"prompt": "Q", "chosen": " ", "rejected": " "}).chosen == " "
    assert pair_of(tmp_path, {"prompt": "Q", "chosen": "a\n", "rejected": ""}) == Pair(
        [USER], "a\n", ""
    )


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({"prompt": "Q", "completion": "a", "label": True}, [USER]),
        ({"prompt": ASKED, "completion": [says("a")], "label": True}, ASKED),
        ({"completion": [*ASKED, says("a")], "label": True}, ASKED),
    ],
)
def test_a_judged_answer_is_read_in_every_shape(tmp_path, values, messages):
    assert judged_of(tmp_path, values) == Judged(messages, "a", True)
    assert not judged_of(tmp_path, {**values, "label": False}).desirable


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": "Q", "chosen": "a"}, 'needed the column "rejected", got "prompt", "chosen"'),
        ({"prompt": "Q", "chosen": 3, "rejected": "b"}, '"chosen": needed a string or a list'),
        ({"prompt": "Q", "chosen": "a", "rejected": None}, '"rejected": needed a string or a list'),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, '"prompt": needed a string or a list'),
        ({"prompt": {}, "chosen": "a", "rejected": "b"}, "or a list, got an object"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "needed text from the user at the end"),
        ({"prompt": "Q", "chosen": [], "rejected": "b"}, "message at the end, got no message"),
        ({"prompt": "Q", "chosen": "a", "rejected": [USER]}, "the end, got the user's"),
        (
            {"prompt": "Q", "chosen": ["a"], "rejected": "b"},
            "needed messages {role, content}, got a string",
        ),
        (
            {"prompt": "Q", "chosen": [{"role": "bot", "content": "a"}], "rejected": "b"},
            "needed a role of system, user, assistant, got 'bot'",
        ),
        (
            {"prompt": "Q", "chosen": [SYSTEM, USER, says("a")], "rejected": "b"},
            'behind the messages of column "prompt", got another message 1',
        ),
        (
            {"prompt": ASKED, "chosen": "a", "rejected": [SYSTEM, says("b")]},
            'column "rejected": needed the answer alone, or behind the messages of column "prompt", '
            "got 1 and 2 messages",
        ),
        ({"chosen": "a", "rejected": "b"}, 'needed the column "prompt", or lists of messages'),
        ({"chosen": [USER, says("a")], "rejected": "b"}, "got neither"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "got neither"),
        (
            {"chosen": [USER, says("a")], "rejected": [{**USER, "content": "R"}, says("b")]},
            "the same messages before the answers, got another message 1",
        ),
        (
            {"chosen": [SYSTEM, says("a")], "rejected": [SYSTEM, says("b")]},
            'column "chosen": needed text from the user right before the answer, got none',
        ),
    ],
)
def test_a_row_that_is_no_pair_is_bad_input(tmp_path, values, said):
    with pytest.raises(BadInput) as caught:
        pair_of(tmp_path, values)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 1: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"prompt": "Q", "completion": "a", "label": 1},
            "needed true or false, got a whole number",
        ),
        ({"prompt": "Q", "label": True}, 'needed the column "completion"'),
        ({"completion": "a", "label": True}, 'begin with the prompt in column "completion"'),
        ({"completion": [SYSTEM, says("a")], "label": True}, "the user right before the answer"),
        ({"prompt": "R", "completion": [USER, says("a")], "label": True}, "got another message 1"),
    ],
)
def test_a_row_that_is_no_judged_answer_is_bad_input(tmp_path, values, said):
    with pytest.raises(BadInput) as caught:
        judged_of(tmp_path, values)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 1: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("messages", [[USER], ASKED])
def test_what_make_data_writes_is_read(tmp_path, messages):
    recipe = settings(
        teacher={"name": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "m"},
        task={"name": "addition"},
        method={"name": "best_of_n"},
        output={"name": "preference"},
    )
    found = [
        Candidate(
            name=f"0/{n}",
            key=n,
            prompt=Prompt(task="t", index=0, messages=messages),
            text=f"answer {n}",
            reasoning="",
            answer=Answer(name=f"0/{n}", text=f"answer {n}"),
            verdict=Verdict(reward=n / 2, passed=n == 2),
        )
        for n in range(3)
    ]
    drafts, _ = choose(recipe, found)
    rows, _ = finished(drafts, recipe, {"name": "endpoint"})
    (tmp_path / "rows.jsonl").write_bytes(encoded(rows))
    assert pairs(tmp_path / "rows.jsonl") == [Pair(messages, "answer 2", "answer 0")]
