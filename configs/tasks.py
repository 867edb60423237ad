"""Settings of the tasks: where prompts come from and how answers are judged."""

from typing import Annotated

from msgspec import Meta

from configs.fields import Closed, Text


class Addition(Closed, frozen=True, tag_field="name", tag="addition"):
    """``a+b=`` with numbers of up to `digits` digits."""

    digits: Annotated[int, Meta(ge=1, le=18)] = 2


class Sorting(Closed, frozen=True, tag_field="name", tag="sorting"):
    """Digits to be written in ascending order."""

    length: Annotated[int, Meta(ge=2, le=64)] = 6


class Countdown(Closed, frozen=True, tag_field="name", tag="countdown"):
    """A target to reach with given numbers and + - *; many answers are right, so a verifier decides."""

    numbers: Annotated[int, Meta(ge=2, le=6)] = 3
    largest: Annotated[int, Meta(ge=2, le=1000)] = 9


class Chain(Closed, frozen=True, tag_field="name", tag="chain"):
    """A chain of additions modulo `modulus`, with the partial results as a scratchpad."""

    terms: Annotated[int, Meta(ge=2, le=64)] = 4
    modulus: Annotated[int, Meta(ge=2, le=100)] = 10


class Gsm8k(Closed, frozen=True, tag_field="name", tag="gsm8k"):
    """Grade-school mathematics from local JSONL files with `question` and `answer`."""

    train: Text
    eval: Text
    instruction: str = "Solve the problem step by step. End with the line: #### <answer>"


class Jsonl(Closed, frozen=True, tag_field="name", tag="jsonl"):
    """The user's own task: prompts in JSONL; a Python function scores answers, or SFT imitates given ones."""

    train: Text
    eval: str = ""
    """Held-out prompts; empty: the last `eval_share` of the training file, never trained on."""
    eval_share: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    prompt: Text = "prompt"
    """Column with the prompt: a string, or a list of {role, content}."""
    response: str = ""
    """Column with the answer to imitate (needed by SFT)."""
    chosen: str = ""
    """Column with the preferred answer (preference learning): a string, or messages that end with it."""
    rejected: str = ""
    """Column with the rejected answer, likewise."""
    label: str = ""
    """Column with true or false: whether the answer in `response` is desirable (KTO)."""
    teacher: str = ""
    """Column with the name of the row's teacher in `algorithm.teachers` (distillation)."""
    reward: str = ""
    """A Python file that defines ``reward(prompt, completion, row) -> float`` (needed by RL)."""
    pass_at: float = 1.0
    """The reward from which an answer counts as passed."""


def judges(task: "Task") -> bool:
    """Returns whether sampled answers can be told right from wrong: by a reward or by the row's answer."""
    if not isinstance(task, Jsonl):
        return True
    return bool(task.reward or (task.response and not task.label))


Task = Addition | Sorting | Countdown | Chain | Gsm8k | Jsonl
