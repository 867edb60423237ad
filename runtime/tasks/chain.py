"""Chains modulo m: ``3+4-1+8 m10`` wants the partial results ``7 6 4``; the last is the answer.

A bare right answer passes, and the scratchpad earns its share of the reward on its own: so there
is something to learn before a whole chain is ever right, and a reason to show the work after.
"""

from typing import Any

from configs.tasks import Chain
from runtime.keys import Stream
from runtime.tasks.procedural import Instance, Procedural
from runtime.tasks.prompt import Verdict

SCRATCHPAD_SHARE = 0.2
"""Reward of a fully right scratchpad; the right answer earns the rest."""


def open_chain(settings: Chain, seed: int) -> Procedural:
    """Chains of `terms` numbers below `modulus`, added or subtracted."""
    return Procedural(
        "chain", seed, lambda stream: draw(settings.terms, settings.modulus, stream), judge
    )


def draw(terms: int, modulus: int, stream: Stream) -> Instance:
    """One chain."""
    result = stream.integer(0, modulus - 1)
    question, partial = str(result), []
    for _ in range(terms - 1):
        sign, term = stream.choice("+-"), stream.integer(0, modulus - 1)
        result = (result + term if sign == "+" else result - term) % modulus
        question += f"{sign}{term}"
        partial.append(str(result))
    question += f" m{modulus}"
    return Instance(
        identity=(question,),
        question=question,
        truth=partial,
        demonstration=" ".join(partial),
    )


def judge(truth: Any, completion: str) -> Verdict:
    """Passed if the last number is right; "scratchpad" is the share of partial results in place.

    Only results up to the first wrong one count, and none if there are too many of them.
    """
    written = completion.split()
    correct = bool(written) and written[-1] == truth[-1]
    scratchpad = _right_so_far(written, truth) / len(truth) if len(written) <= len(truth) else 0.0
    return Verdict(
        reward=(1 - SCRATCHPAD_SHARE) * correct + SCRATCHPAD_SHARE * scratchpad,
        passed=correct,
        parts={"correct": float(correct), "scratchpad": scratchpad},
    )


def _right_so_far(written: list[str], truth: list[str]) -> int:
    for count, (came, needed) in enumerate(zip(written, truth)):
        if came != needed:
            return count
    return min(len(written), len(truth))
