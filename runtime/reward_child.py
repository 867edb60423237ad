"""The far end of `runtime.reward_process`: runs a user's reward function, one call per line.

Standard library only, so that it starts in a few hundredths of a second. The pipes move to private
descriptors before the user's file is imported: what it prints goes to stderr, and the programs that
it starts inherit neither.
"""

import inspect
import json
import math
import numbers
import os
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGNATURE = "reward(prompt, completion, row)"
LONGEST_DETAIL = 300


class Unusable(Exception):
    """The user's file has no reward function that could be called."""


def main(path: str) -> None:
    """Import, say so, then answer requests until the pipe closes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    try:
        function = load(path)
    except Unusable as problem:
        _reply(replies, {"problem": str(problem)})
        return
    _reply(replies, {"problem": ""})
    for line in requests:
        request = json.loads(line)
        _reply(replies, {"number": request["number"], **call(function, request, path)})


def load(path: str) -> Callable[..., Any]:
    """The function `reward` of the file; calls nothing but the import. Raises Unusable."""
    module = types.ModuleType("reward_file")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look it up
    sys.path.insert(0, str(Path(path).parent))
    try:
        exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        raise Unusable(f"does not import: {describe(error, path)}") from None
    function = getattr(module, "reward", None)
    if not callable(function):
        came = "nothing of that name" if function is None else f"a {type(function).__name__}"
        raise Unusable(f"needed a function {SIGNATURE}, found {came}")
    if inspect.iscoroutinefunction(function):
        raise Unusable(f"needed a function {SIGNATURE}, got an async one")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: known only when called
        return function
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise Unusable(f"needed a function {SIGNATURE}, got reward{signature}") from None
    return function


def call(function: Callable[..., Any], request: dict[str, Any], path: str) -> dict[str, Any]:
    """One call as a reply: a finite `reward`, or `failure` and `detail`."""
    try:
        value = function(request["prompt"], request["completion"], request["row"])
        return _judged(value)
    except BaseException as error:  # sys.exit() and the like are the user's failure, not ours
        return {"failure": "raised", "detail": describe(error, path)}


def describe(error: BaseException, path: str) -> str:
    """Type, first line and the last line of the user's file on the way there."""
    if isinstance(error, SyntaxError):
        text, line = str(error.msg), error.lineno
    else:
        text, line = _text(error), None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == path:
            line = number
    head = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return head if line is None else f"{head} ({Path(path).name}, line {line})"


def _judged(value: Any) -> dict[str, Any]:
    if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return {"reward": number}
        shown = str(number)
    else:
        shown = f"{type(value).__name__} {_line(repr(value))}"
    return {"failure": "not_a_number", "detail": f"needed a finite number, got {shown}"}


def _text(error: BaseException) -> str:
    try:
        return _line(str(error))
    except Exception:  # the user's own __str__
        return ""


def _line(text: str) -> str:
    """The first line, short and printable."""
    first = text.strip().partition("\n")[0][:LONGEST_DETAIL]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in first)


def _reply(descriptor: int, reply: dict[str, Any]) -> None:
    rest = json.dumps(reply).encode() + b"\n"
    while rest:
        rest = rest[os.write(descriptor, rest) :]


if __name__ == "__main__":
    main(sys.argv[1])
