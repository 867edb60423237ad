"""Countdown: an answer to ``3 5 7 > 22`` is an expression such as ``3*5+7``; many answers may be right.

Each given number may be used once at most, with + - * and parentheses. The target is the value of
a random expression over all the numbers, so a solution always exists; it is never one of the
numbers itself. The small parser below reads answers without Python's `eval`. Because every number must be a
given one, no value exceeds their product.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from configs.tasks import Countdown
from runtime.keys import Stream
from runtime.tasks.procedural import Instance, Procedural, right_or_wrong
from runtime.tasks.prompt import Verdict

LONGEST_ANSWER = 100
"""Longest answer in characters, which bounds the parser; six numbers of four digits need fewer."""
TARGET_SPAN = 10
"""The target is at most this many times the largest number that can be given."""
TOKEN = re.compile(r"[0-9]+|[-+*()]")
Piece = tuple[str, int, bool]
"""A piece of a solution: its text, its value, and whether it is a number or a product, which needs no
parentheses."""


class NotLegal(ValueError):
    """The answer is not an expression over the given numbers."""


def open_countdown(settings: Countdown, seed: int) -> Procedural:
    """Returns a task of targets over `numbers` numbers from 1 to `largest`."""
    return Procedural(
        "countdown", seed, lambda stream: draw(settings.numbers, settings.largest, stream), judge
    )


def draw(count: int, largest: int, stream: Stream) -> Instance | None:
    """Returns one random target with its solution; None if the target is out of range or a given number."""
    numbers = [stream.integer(1, largest) for _ in range(count)]
    text, target = _expression(numbers, stream)
    if not 1 <= target <= TARGET_SPAN * largest or target in numbers:
        return None
    return Instance(
        identity=(*sorted(numbers), ">", target),
        question=f"{' '.join(map(str, numbers))} > {target}",
        truth={"numbers": numbers, "target": target},
        demonstration=text,
    )


def judge(truth: Any, completion: str) -> Verdict:
    """Returns a verdict: right if the expression's value is the target; "legal" is 1 for an expression over
    the given numbers."""
    try:
        value = evaluate(completion, truth["numbers"])
    except NotLegal:
        return right_or_wrong(False, legal=0.0)
    return right_or_wrong(value == truth["target"], legal=1.0)


def evaluate(text: str, numbers: Iterable[int]) -> int:
    """Returns the value of an expression that uses each of `numbers` once at most.

    sum = product {("+" | "-") product};  product = factor {"*" factor};
    factor = number | "(" sum ")". Blanks are ignored. Raises NotLegal for anything else.
    """
    if len(text) > LONGEST_ANSWER:
        raise NotLegal(f"longer than {LONGEST_ANSWER} characters")
    bare = text.replace(" ", "") if not re.search("[0-9] +[0-9]", text) else ""
    tokens = TOKEN.findall(bare)
    if not tokens or "".join(tokens) != bare:
        raise NotLegal("not an expression")
    tokens.reverse()  # the next one is popped from the end
    value = _sum(tokens, Counter(map(str, numbers)))
    if tokens:
        raise NotLegal("something is left over")
    return value


def _sum(tokens: list[str], unused: Counter[str]) -> int:
    value = _product(tokens, unused)
    while tokens and tokens[-1] in "+-":
        sign = tokens.pop()
        term = _product(tokens, unused)
        value = value + term if sign == "+" else value - term
    return value


def _product(tokens: list[str], unused: Counter[str]) -> int:
    value = _factor(tokens, unused)
    while tokens and tokens[-1] == "*":
        tokens.pop()
        value *= _factor(tokens, unused)
    return value


def _factor(tokens: list[str], unused: Counter[str]) -> int:
    token = tokens.pop() if tokens else ""
    if token == "(":
        value = _sum(tokens, unused)
        if not tokens or tokens.pop() != ")":
            raise NotLegal("a parenthesis is open")
        return value
    if not unused[token]:
        raise NotLegal("not a number that may be used here")
    unused[token] -= 1
    return int(token)


def _expression(numbers: list[int], stream: Stream) -> tuple[str, int]:
    """Returns a random expression over all numbers and its value; it joins two pieces until one is left."""
    pieces: list[Piece] = [(str(n), n, True) for n in stream.shuffled(numbers)]
    while len(pieces) > 1:
        left, right = (pieces.pop(stream.integer(0, len(pieces) - 1)) for _ in range(2))
        pieces.append(_join(left, stream.choice("+-*"), right))
    text, value, _ = pieces[0]
    return text, value


def _join(left: Piece, sign: str, right: Piece) -> Piece:
    (a, x, a_product), (b, y, b_product) = left, right
    if sign == "+":
        return f"{a}+{b}", x + y, False
    b = b if b_product else f"({b})"
    if sign == "-":
        return f"{a}-{b}", x - y, False
    a = a if a_product else f"({a})"
    return f"{a}*{b}", x * y, True
