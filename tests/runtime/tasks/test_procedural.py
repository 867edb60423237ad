"""Procedural tasks keep held-out instances out of training, and their verifiers are exact on any text."""

import itertools
import re
import time

import pytest

from configs import tasks
from runtime.errors import BadInput
from runtime.tasks.chain import judge as judge_chain
from runtime.tasks.countdown import NotLegal, evaluate
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Split
from tests.runtime.tasks.hostile import HOSTILE

PROCEDURAL = [
    tasks.Addition(),
    tasks.Addition(digits=1),
    tasks.Addition(digits=18),
    tasks.Sorting(),
    tasks.Sorting(length=2),
    tasks.Sorting(length=64),
    tasks.Countdown(),
    tasks.Countdown(numbers=2),
    tasks.Countdown(numbers=6, largest=1000),
    tasks.Chain(),
    tasks.Chain(terms=2, modulus=5),
    tasks.Chain(terms=64, modulus=100),
]


def question(prompt) -> str:
    assert [m["role"] for m in prompt.messages] == ["user"]
    return prompt.messages[0]["content"]


@pytest.mark.parametrize("settings", PROCEDURAL, ids=repr)
def test_a_demonstration_earns_the_full_reward_and_a_changed_one_does_not(settings):
    task = open_task(settings, seed=3)
    splits: tuple[Split, ...] = ("train", "eval")
    for split, index in itertools.product(splits, range(50)):
        prompt = task.prompt(split, index)
        assert (prompt.task, prompt.index) == (task.name, index)
        assert prompt.demonstration
        right = task.verify(prompt, f" \n{prompt.demonstration}\t ")
        assert (right.reward, right.passed, right.parts["correct"]) == (1.0, True, 1.0)
        wrong = task.verify(prompt, prompt.demonstration + "0")
        assert wrong.reward is not None
        assert wrong.reward < 1
        assert (wrong.passed, wrong.parts["correct"]) == (False, 0.0)


@pytest.mark.parametrize("count", [25, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.parametrize("settings", PROCEDURAL, ids=repr)
def test_train_and_eval_share_no_instance_whatever_the_seeds(settings, count):
    seen: dict[Split, set[str]] = {"train": set(), "eval": set()}
    for seed in (0, 1, 2):
        task = open_task(settings, seed)
        for split, found in seen.items():
            found.update(question(task.prompt(split, index)) for index in range(count))
    assert seen["train"]
    assert seen["eval"]
    assert not seen["train"] & seen["eval"]


@pytest.mark.parametrize("settings", PROCEDURAL, ids=repr)
def test_eval_prompts_do_not_depend_on_the_seed_and_train_prompts_do(settings):
    one, other = open_task(settings, seed=1), open_task(settings, seed=2)
    assert one.size("train") is None
    assert one.size("eval") is None
    evals = [[task.prompt("eval", i) for i in range(20)] for task in (one, other)]
    trains = [[task.prompt("train", i) for i in range(20)] for task in (one, other)]
    assert evals[0] == evals[1]
    assert trains[0] != trains[1]
    assert trains[0] == [open_task(settings, seed=1).prompt("train", i) for i in range(20)]


def test_the_splits_of_a_small_space_are_disjoint_and_about_one_in_eight():
    task = open_task(tasks.Addition(digits=1), seed=0)
    train = {question(task.prompt("train", i)) for i in range(1500)}
    held_out = {question(task.prompt("eval", i)) for i in range(300)}
    assert len(train | held_out) == 100
    assert not train & held_out
    assert 4 <= len(held_out) <= 30


def test_what_only_differs_in_order_is_the_same_instance():
    addition = open_task(tasks.Addition(digits=1), seed=0)
    sorting = open_task(tasks.Sorting(length=2), seed=0)
    for index in range(200):
        a, b = question(addition.prompt("eval", index))[:-1].split("+")
        assert f"{b}+{a}=" not in {question(addition.prompt("train", i)) for i in range(50)}
        assert sorting.prompt("eval", index).truth not in {
            sorting.prompt("train", i).truth for i in range(50)
        }


@pytest.mark.parametrize(
    "settings", [tasks.Countdown(numbers=2, largest=2), tasks.Chain(terms=2, modulus=2)]
)
def test_settings_that_leave_nothing_to_hold_out_are_bad_input(settings):
    with pytest.raises(BadInput, match=r"hold out") as caught:
        open_task(settings, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", PROCEDURAL, ids=repr)
def test_no_completion_breaks_a_verifier_or_passes_by_accident(settings):
    task = open_task(settings, seed=0)
    prompt = task.prompt("train", 0)
    started = time.monotonic()
    for completion in HOSTILE:
        verdict = task.verify(prompt, completion)
        assert verdict.passed is False
        assert verdict.parts["correct"] == 0.0
        assert verdict.failure is None
    assert time.monotonic() - started < 2


def test_prompts_have_the_promised_form():
    forms = [
        (tasks.Addition(), r"[0-9]{1,2}\+[0-9]{1,2}="),
        (tasks.Sorting(), r"s:[0-9]{6}"),
        (tasks.Countdown(), r"[1-9] [1-9] [1-9] > [1-9][0-9]?"),
        (tasks.Chain(), r"[0-9]([-+][0-9]){3} m10"),
    ]
    for settings, form in forms:
        task = open_task(settings, seed=0)
        for index in range(50):
            assert re.fullmatch(form, question(task.prompt("train", index)))


def test_sums_and_sorted_digits_are_those_of_python():
    addition, sorting = open_task(tasks.Addition(), 5), open_task(tasks.Sorting(), 5)
    for index in range(100):
        prompt = addition.prompt("train", index)
        a, b = question(prompt)[:-1].split("+")
        assert prompt.demonstration == str(int(a) + int(b))
        prompt = sorting.prompt("train", index)
        assert prompt.demonstration == "".join(sorted(question(prompt)[2:]))


def test_chain_results_are_those_of_python():
    task = open_task(tasks.Chain(terms=6, modulus=7), seed=0)
    for index in range(100):
        prompt = task.prompt("train", index)
        chain = question(prompt).removesuffix(" m7")
        ends = [m.end() for m in re.finditer(r"[-+][0-9]", chain)]
        assert prompt.demonstration == " ".join(str(eval(chain[:end]) % 7) for end in ends)


@pytest.mark.parametrize(
    ("completion", "passed", "scratchpad"),
    [
        ("7 6 4", True, 1.0),
        ("4", True, 0.0),
        ("7 4", True, 1 / 3),
        ("7 6 5", False, 2 / 3),
        ("7 6", False, 2 / 3),
        ("1 6 4", True, 0.0),
        ("7 6 4 4", True, 0.0),
        ("7 6 4 5", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_a_chain_passes_by_its_last_number_and_the_scratchpad_counts_apart(
    completion, passed, scratchpad
):
    verdict = judge_chain(["7", "6", "4"], completion)
    assert verdict.passed is passed
    assert verdict.parts == {"correct": float(passed), "scratchpad": pytest.approx(scratchpad)}
    assert verdict.reward == pytest.approx(0.8 * passed + 0.2 * scratchpad)


def test_the_expression_parser_agrees_with_python_on_every_small_expression():
    numbers = [2, 3, 7]
    forms = ["{0}{s}{1}{t}{2}", "({0}{s}{1}){t}{2}", "{0}{s}({1}{t}{2})", "(({0}){s}({1}{t}{2}))"]
    for form, order, s, t in itertools.product(
        forms, itertools.permutations(numbers), "+-*", "+-*"
    ):
        text = form.format(*order, s=s, t=t)
        assert evaluate(text, numbers) == eval(text)


@pytest.mark.parametrize(
    "text",
    ["3+3", "3+4", "35", "3 5", "-3", "3--5", "+3", "3*", "3/5", "3**5", "(3", "3)", "()", "3()",
     "(3)(5)", "3+5=8", "03", "３", "3\n+5", "3*5+7+3"],
)  # fmt: skip
def test_what_is_not_an_expression_over_the_given_numbers_is_not_legal(text):
    with pytest.raises(NotLegal):
        evaluate(text, [3, 5, 7])


def test_any_expression_that_reaches_the_target_passes_and_a_legal_one_that_does_not_says_so():
    task = open_task(tasks.Countdown(), seed=0)
    prompt = task.prompt("train", 0)
    prompt = type(prompt)(
        task="countdown", index=0, messages=[], truth={"numbers": [3, 5, 7], "target": 22}
    )
    for answer in ("3*5+7", "7+5*3", "(3 * 5) + 7"):
        assert task.verify(prompt, answer).passed
    assert task.verify(prompt, "3*7+5").parts == {"correct": 0.0, "legal": 1.0}
    assert task.verify(prompt, "22").parts == {"correct": 0.0, "legal": 0.0}


def test_a_given_number_may_be_used_as_often_as_it_is_given():
    assert evaluate("3*3", [3, 3]) == 9
    with pytest.raises(NotLegal):
        evaluate("3*3*3", [3, 3])


def test_a_countdown_target_is_not_given_away():
    task = open_task(tasks.Countdown(numbers=2), seed=0)
    for index in range(200):
        truth = task.prompt("train", index).truth
        assert truth["target"] not in truth["numbers"]
        assert 1 <= truth["target"] <= 90
