"""Sorting: the right answer to ``s:402613`` is ``012346``.

The order of the digits is not part of the identity: no held-out answer is a training answer.
"""

from typing import Any

from configs.tasks import Sorting
from runtime.keys import Stream
from runtime.tasks.procedural import Instance, Procedural, right_or_wrong
from runtime.tasks.prompt import Verdict


def open_sorting(settings: Sorting, seed: int) -> Procedural:
    """Returns a task of strings of `length` digits, each uniform."""
    return Procedural("sorting", seed, lambda stream: draw(settings.length, stream), judge)


def draw(length: int, stream: Stream) -> Instance:
    """Returns one random string of digits."""
    digits = "".join(str(stream.integer(0, 9)) for _ in range(length))
    answer = "".join(sorted(digits))
    return Instance(identity=(answer,), question=f"s:{digits}", truth=answer, demonstration=answer)


def judge(truth: Any, completion: str) -> Verdict:
    """Returns a verdict: right if all digits are in place."""
    return right_or_wrong(completion == truth)
