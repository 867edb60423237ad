"""GSM8K: every gold answer passes its own verifier, and nothing else does."""

import json
from pathlib import Path

import pytest

from configs.tasks import Gsm8k
from runtime.errors import BadInput
from runtime.tasks.gsm8k import final_number
from runtime.tasks.open import open_task
from tests.runtime.tasks.hostile import HOSTILE

DATA = Path(__file__).parents[3] / "../shared/data/gsm8k"
ROWS = [
    {"question": "How many?", "answer": "2*3=<<2*3=6>>6 apples\n#### 6"},
    {"question": "How much?", "answer": "It is $1,200.\n#### 1,200"},
    {"question": "How cold?", "answer": "Below.\n#### -5"},
    {"question": "How long?", "answer": "Half of 5.\n#### 2.5"},
]


def made(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Gsm8k:
    if (DATA / "test.jsonl").exists():
        return Gsm8k(train=str(DATA / "train.jsonl"), eval=str(DATA / "test.jsonl"))
    path = made(tmp_path_factory.mktemp("gsm8k") / "rows.jsonl", ROWS)
    return Gsm8k(train=path, eval=path)


def test_every_gold_answer_passes_its_own_verifier_and_a_neighbour_does_not(settings):
    task = open_task(settings, seed=0)
    size = task.size("eval")
    assert size
    passed = wrong_passed = 0
    for index in range(size):
        prompt = task.prompt("eval", index)
        assert prompt.demonstration
        assert "<<" not in prompt.demonstration
        verdict = task.verify(prompt, prompt.demonstration)
        passed += verdict == task.verify(prompt, f"#### ${prompt.truth}.")
        passed -= not verdict.passed
        head, _, _ = prompt.demonstration.rpartition("####")
        number = prompt.truth
        wrong_ones = [f"{number}1", f"1{number}", f"{number}.5", f"-{number}1", f"{number} or 1"]
        for wrong in (head, number, *(f"#### {one}" for one in wrong_ones)):
            wrong_passed += bool(task.verify(prompt, wrong).passed)
    assert (passed, wrong_passed) == (size, 0)


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/gsm8k")
def test_the_whole_test_split_is_there(settings):
    task = open_task(settings, seed=0)
    assert (task.size("train"), task.size("eval")) == (7473, 1319)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("####72", "72"),
        ("#### 1,200", "1200"),
        ("#### $1,200.00.", "1200"),
        ("#### **72**", "72"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### -0", "0"),
        ("#### 2.50", "2.5"),
        ("#### 007", "7"),
        ("#### 25%", "25"),
        ("#### 72 eggs", "72"),
        ("#### 1\n#### 72", "72"),
        ("#### 72\nand 3 more", "72"),
        ("72", None),
        ("####", None),
        ("#### x", None),
        ("#### 72 or 73", None),
        ("#### 72/5", None),
        ("#### 72e5", None),
        ("#### 72²", None),
        ("#### 7٣", None),
        ("#### 12,34", None),
        ("#### 1,2345", None),
        ("#### 7.5.1", None),
        ("#### .5", None),
    ],
)
def test_the_final_number_is_read_tolerantly_but_only_if_there_is_one(text, number):
    assert final_number(text) == number


def test_no_completion_breaks_the_verifier(settings):
    task = open_task(settings, seed=0)
    prompt = task.prompt("eval", 0)
    for completion in HOSTILE:
        verdict = task.verify(prompt, completion)
        assert (verdict.reward, verdict.passed, verdict.failure) == (0.0, False, None)
    assert task.verify(prompt, "no mark").parts == {"correct": 0.0, "format": 0.0}
    assert task.verify(prompt, "#### 123456").parts == {"correct": 0.0, "format": 1.0}


def test_each_pass_over_the_training_rows_is_a_permutation_of_its_own(tmp_path):
    rows = [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(20)]
    path = made(tmp_path / "rows.jsonl", rows)
    settings = Gsm8k(train=path, eval=path, instruction="")

    def order(seed: int, split, start: int) -> list[int]:
        task = open_task(settings, seed)
        return [int(task.prompt(split, start + i).truth) for i in range(20)]

    passes = [order(0, "train", 0), order(0, "train", 20), order(1, "train", 0)]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert order(0, "train", 0) == passes[0]
    assert order(0, "eval", 0) == order(1, "eval", 0) == list(range(20))
    with pytest.raises(IndexError, match="below 20, got 20"):
        open_task(settings, 0).prompt("eval", 20)


def test_the_instruction_follows_the_question(tmp_path):
    path = made(tmp_path / "rows.jsonl", ROWS)
    task = open_task(Gsm8k(train=path, eval=path, instruction="End well."), seed=0)
    assert task.prompt("eval", 0).messages == [
        {"role": "user", "content": "How many?\n\nEnd well."}
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q"}, 'needed the column "answer", got "question"'),
        ({"question": "q", "answer": 6}, 'column "answer": needed a string, got a whole number'),
        ({"question": "q", "answer": "6"}, 'needed a number after "####", found none'),
        ({"question": " ", "answer": "#### 6"}, "needed a question, got blank text"),
    ],
)
def test_a_row_that_cannot_be_judged_is_bad_input(tmp_path, row, said):
    path = made(tmp_path / "rows.jsonl", [*ROWS, row])
    with pytest.raises(BadInput) as caught:
        open_task(Gsm8k(train=path, eval=path), seed=0)
    assert f"{path}, line 5: " in str(caught.value)
    assert said in str(caught.value)
