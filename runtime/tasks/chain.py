"""Chains modulo m: ``3+4-1+8 m10`` has the partial results ``7 6 4``, of which the last is the answer.

A right answer passes without partial results, and a right scratchpad earns its share of the reward on its
own. So the policy can learn before a whole chain is ever right, and is rewarded for the scratchpad after.
"""

from typing import Any

from configs.tasks import Chain
from runtime.keys import Stream
from runtime.tasks.procedural import Instance, Procedural
from runtime.tasks.prompt import Verdict

SCRATCHPAD_SHARE = 0.2
"""Reward of a scratchpad that is right throughout; the right answer earns the rest."""


def open_chain(settings: Chain, seed: int) -> Procedural:
    """Returns a task of chains of `terms` numbers below `modulus`, added or subtracted."""
    return Procedural(
        "chain", seed, lambda stream: draw(settings.terms, settings.modulus, stream), judge
    )


def draw(terms: int, modulus: int, stream: Stream) -> Instance:
    """Returns one random chain."""
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
    """Returns a verdict: passed if the last number is right; "scratchpad" is the share of right results.

    Only partial results up to the first wrong one count, and none if there are too many.
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
