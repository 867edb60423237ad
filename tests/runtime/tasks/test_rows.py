"""A task of a user's own rows: its columns, held-out rows, and a reward function that gets the whole row."""

import json
from pathlib import Path

import pytest

from configs.tasks import Jsonl
from runtime.errors import BadInput
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Verdict


def made(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(folder: Path, count: int, name: str = "rows.jsonl") -> str:
    return made(folder / name, [{"prompt": f"p{n}", "response": f"r{n}"} for n in range(count)])


@pytest.mark.parametrize(
    ("rows", "share", "held_out"), [(2, 0.1, 1), (2, 0.99, 1), (10, 0.1, 1), (10, 0.35, 3)]
)
def test_the_last_share_is_held_out_and_both_splits_have_a_row(tmp_path, rows, share, held_out):
    settings = Jsonl(train=numbered(tmp_path, rows), response="response", eval_share=share)
    task = open_task(settings, seed=0)
    assert (task.size("train"), task.size("eval")) == (rows - held_out, held_out)
    trained = {task.prompt("train", i).truth["prompt"] for i in range(3 * rows)}
    evaluated = [task.prompt("eval", i).truth["prompt"] for i in range(held_out)]
    assert evaluated == [f"p{n}" for n in range(rows - held_out, rows)]
    assert trained == {f"p{n}" for n in range(rows - held_out)}


def test_one_row_cannot_be_split_but_an_eval_file_can_be_named(tmp_path):
    train = numbered(tmp_path, 1)
    with pytest.raises(BadInput, match=r"rows.jsonl: needed at least 2 rows.* got 1"):
        open_task(Jsonl(train=train, response="response"), seed=0)
    held_out = numbered(tmp_path, 3, "eval.jsonl")
    task = open_task(Jsonl(train=train, eval=held_out, response="response"), seed=0)
    assert (task.size("train"), task.size("eval")) == (1, 3)


def test_without_a_reward_file_an_answer_passes_if_it_is_the_response(tmp_path):
    task = open_task(Jsonl(train=numbered(tmp_path, 3), response="response"), seed=0)
    prompt = task.prompt("eval", 0)
    assert prompt.demonstration == "r2"
    assert task.verify(prompt, " r2\n").passed
    assert task.verify(prompt, "r1").reward == 0.0
    assert task.verify(prompt, "\ud800\0").parts == {"correct": 0.0}


def test_the_reward_function_gets_the_prompt_the_completion_and_the_whole_row(tmp_path):
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"}]
    data = made(tmp_path / "rows.jsonl", [{"chat": messages, "word": "yes"}] * 2)
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def reward(prompt, completion, row):\n"
        "    assert prompt == row['chat'] and prompt[-1]['content'] == 'Hi'\n"
        "    return completion.count(row['word']) / 2\n"
    )
    settings = Jsonl(train=data, prompt="chat", reward=str(reward), pass_at=0.75)
    task = open_task(settings, seed=0)
    try:
        prompt = task.prompt("eval", 0)
        assert prompt.messages == messages
        assert prompt.demonstration is None
        full, half = task.verify(prompt, "yes yes"), task.verify(prompt, "yes")
        assert (full.reward, full.passed, full.parts) == (1.0, True, {"correct": 1.0})
        assert (half.reward, half.passed, half.parts) == (0.5, False, {"correct": 0.0})
    finally:
        task.close()


def test_a_failed_reward_is_no_verdict_on_the_answer(tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text("def reward(prompt, completion, row):\n    return None\n")
    task = open_task(Jsonl(train=numbered(tmp_path, 2), reward=str(reward)), seed=0)
    try:
        verdict = task.verify(task.prompt("eval", 0), "x")
    finally:
        task.close()
    assert (verdict.reward, verdict.passed, verdict.failure) == (None, None, "not_a_number")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (3, "needed a string or a list, got a whole number"),
        ("  ", "needed text from the user at the end"),
        ([], "needed text from the user at the end"),
        (["Hi"], "needed messages {role, content}, got a string"),
        ([{"role": "user"}], "needed messages {role, content}, got keys ['role']"),
        ([{"role": "human", "content": "Hi"}], "needed a role of system, user, assistant"),
        ([{"role": ["user"], "content": "Hi"}], "needed a role of system, user, assistant"),
        ([{"role": "user", "content": 3}], "needed content that is a string"),
        ([{"role": "assistant", "content": "Hi"}], "needed text from the user at the end"),
    ],
)
def test_a_prompt_that_is_none_is_bad_input(tmp_path, prompt, said):
    data = made(tmp_path / "rows.jsonl", [{"prompt": "p", "response": ""}, {"prompt": prompt}])
    reward = tmp_path / "reward.py"
    reward.write_text("def reward(prompt, completion, row): return 0\n")
    with pytest.raises(BadInput) as caught:
        open_task(Jsonl(train=data, reward=str(reward)), seed=0)
    assert f'{data}, line 2: column "prompt": ' in str(caught.value)
    assert said in str(caught.value)


def test_rows_without_answers_or_reward_have_no_verifier(tmp_path):
    task = open_task(Jsonl(train=numbered(tmp_path, 2)), seed=0)
    assert task.verify(task.prompt("train", 0), "anything") == Verdict(reward=None)


def test_a_row_names_its_teacher(tmp_path):
    rows = [{"prompt": "p", "whose": name} for name in ("big", "small")]
    task = open_task(Jsonl(train=made(tmp_path / "rows.jsonl", rows), teacher="whose"), seed=0)
    assert task.prompt("train", 0).teacher == "big" and task.prompt("eval", 0).teacher == "small"


def test_a_task_needs_the_columns_it_names(tmp_path):
    data = numbered(tmp_path, 2)
    with pytest.raises(BadInput, match=r'line 1: needed the column "whose", got "prompt"'):
        open_task(Jsonl(train=data, teacher="whose"), seed=0)
    with pytest.raises(BadInput, match=r'line 1: needed the column "answer", got "prompt"'):
        open_task(Jsonl(train=data, response="answer"), seed=0)
    with pytest.raises(BadInput, match=r"none.py: needed a Python file"):
        open_task(Jsonl(train=data, reward=str(tmp_path / "none.py")), seed=0)
