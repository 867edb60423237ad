"""The child process of `runtime.reward_process`, which calls a user's reward function once per request.

It uses the standard library only, so that it starts in a few hundredths of a second. The first request
imports the user's file; by then `runtime.reward_pipe` has moved the pipes to private descriptors.
"""

import inspect
import json
import math
import numbers
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.plain_text import printable
from runtime.reward_pipe import serve

SIGNATURE = "reward(prompt, completion, row)"
LONGEST_DETAIL = 300


class Unusable(Exception):
    """The user's file has no usable reward function."""


class Reward:
    """A user's reward file: the first request imports it, each later one calls its function."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._function: Callable[..., Any] | None = None

    def answer(self, request: bytes) -> bytes:
        """Returns the reply to one request: {"problem"}, {"reward"}, or {"failure", "detail"}."""
        if self._function is not None:
            return json.dumps(call(self._function, json.loads(request), self._path)).encode()
        try:
            self._function = load(self._path)
        except Unusable as problem:
            return json.dumps({"problem": str(problem)}).encode()
        return b'{"problem": ""}'


def load(path: str) -> Callable[..., Any]:
    """Imports the file and returns its function `reward`, without calling it. Raises Unusable."""
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
    """Calls the function and returns the reply: a finite `reward`, or `failure` and `detail`."""
    try:
        value = function(request["prompt"], request["completion"], request["row"])
        return _judged(value)
    except BaseException as error:  # sys.exit() and the like are failures of the user's function
        kind = "out_of_memory" if isinstance(error, MemoryError) else "raised"
        return {"failure": kind, "detail": describe(error, path)}


def describe(error: BaseException, path: str) -> str:
    """Returns the error's type, the first line of its text, and the line in the user's file."""
    try:
        return _described(error, path)
    except BaseException:  # the error's own attributes can raise too
        return type.__getattribute__(type(error), "__name__")


def _described(error: BaseException, path: str) -> str:
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
    module = str(getattr(type(value), "__module__", ""))
    if module.partition(".")[0] == "numpy" and getattr(value, "ndim", 1) == 0:
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
    """Returns the text's first line, shortened and printable."""
    return printable(text[: 10 * LONGEST_DETAIL].strip().partition("\n")[0], LONGEST_DETAIL)


if __name__ == "__main__":
    serve(Reward(sys.argv[1]).answer)
