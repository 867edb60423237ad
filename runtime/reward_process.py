"""The user's reward function, in a process of its own with a time limit that kills.

A call that raises, hangs, dies or returns no number is a failure with its kind, and its reward is
null: a zero would teach the policy that the answer was bad. The process is started again at the
next call, and the time of that start is not the call's.

    process = RewardProcess("reward.py", timeout_s=10)    # BadInput if it cannot be used
    verdicts = process.score([RewardCall(prompt=..., completion=..., row=...)])
    process.close()
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from runtime.errors import BadInput
from runtime.killable import Died, Killable, TimedOut
from runtime.tasks.prompt import Verdict

MODULE = "runtime.reward_child"
START_TIMEOUT_S = 60.0
"""Time for the user's file to import: it may load a library of gigabytes."""


class RewardCall(Struct, frozen=True, kw_only=True):
    """The arguments of one call, as JSON values."""

    prompt: Any
    completion: str
    row: dict[str, Any]


class RewardProcess:
    """One process, asked by one caller at a time."""

    def __init__(
        self, path: str | Path, timeout_s: float, start_timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Import the file and inspect `reward`; raises BadInput if it cannot be used."""
        self._path = path
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._process: Killable | None = None
        self._number = 0
        if not Path(path).is_file():
            came = "a directory" if Path(path).is_dir() else "nothing of that name"
            raise BadInput(f"{path}: needed a Python file with a reward function, found {came}")
        if problem := self._start():
            raise BadInput(f"{path}: {problem}")

    def score(self, calls: Sequence[RewardCall]) -> list[Verdict]:
        """A verdict for each call in order; the time limit is that of one call."""
        return [self._score(call) for call in calls]

    def close(self) -> None:
        """End the process and all that it started."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _score(self, call: RewardCall) -> Verdict:
        if self._process is None or not self._process.alive():
            self.close()
            if problem := self._start():
                return _failed("died", f"could not be started again: {problem}")
        assert self._process is not None
        self._number += 1
        request = {
            "number": self._number,
            "prompt": call.prompt,
            "completion": call.completion,
            "row": call.row,
        }
        try:
            reply = self._process.ask(request, self._timeout_s)
        except TimedOut:
            self.close()
            return _failed("timed_out", f"no answer within {self._timeout_s:g} s")
        except Died as cause:
            self.close()
            return _failed("died", str(cause))
        return self._verdict(reply)

    def _verdict(self, reply: Any) -> Verdict:
        match reply:
            case {"number": self._number, "reward": float(reward)}:
                return Verdict(reward=reward)
            case {"number": self._number, "failure": str(kind), "detail": str(detail)}:
                return _failed(kind, detail)
        self.close()  # such as a fork that came back from `reward` as well and answered twice
        return _failed("died", "the process answered out of turn")

    def _start(self) -> str:
        """What keeps the file from being used; empty if the process is ready."""
        self._process = Killable(MODULE, str(Path(self._path).resolve()))
        try:
            problem = self._process.ask(None, self._start_timeout_s)["problem"]
        except TimedOut:
            problem = f"did not import within {self._start_timeout_s:g} s"
        except Died as cause:
            problem = f"does not import: {cause}"
        if problem:
            self.close()
        return problem


def _failed(kind: str, detail: str) -> Verdict:
    return Verdict(reward=None, failure=kind, detail=detail)
