"""Addition: the right answer to ``23+58=`` is ``81``.

The order of the two numbers is not part of the identity: if 23+58 is held out, so is 58+23.
"""

from typing import Any

from configs.tasks import Addition
from runtime.keys import Stream
from runtime.tasks.procedural import Instance, Procedural, right_or_wrong
from runtime.tasks.prompt import Verdict


def open_addition(settings: Addition, seed: int) -> Procedural:
    """Returns a task of sums of two numbers, each uniform over those of up to `digits` digits."""
    return Procedural("addition", seed, lambda stream: draw(settings.digits, stream), judge)


def draw(digits: int, stream: Stream) -> Instance:
    """Returns one random sum."""
    a, b = (stream.integer(0, 10**digits - 1) for _ in range(2))
    return Instance(
        identity=(min(a, b), max(a, b)),
        question=f"{a}+{b}=",
        truth=str(a + b),
        demonstration=str(a + b),
    )


def judge(truth: Any, completion: str) -> Verdict:
    """Returns a verdict: right if the answer is the sum, character by character."""
    return right_or_wrong(completion == truth)
