"""The user's reward function, in a process of its own that is killed at a time limit.

A call that raises, hangs, dies or returns no number is a failure with a kind, and its reward is
null: a zero would train the policy as if the answer were bad. The process is started again at the
next call, and the time of that start does not count towards the call's limit.

    process = RewardProcess("reward.py", timeout_s=10)    # BadInput if it cannot be used
    verdicts = process.score([RewardCall(prompt=..., completion=..., row=...)])
    process.close()
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from runtime.errors import BadInput
from runtime.killable import MEMORY_BYTES, Died, Forged, Killable, OutOfMemory, TimedOut
from runtime.output_log import OutputLog
from runtime.plain_text import printable
from runtime.tasks.prompt import Verdict

MODULE = "runtime.reward_child"
START_TIMEOUT_S = 60.0
"""Time limit of the import of the user's file, which may load a library of gigabytes."""
LARGEST_REWARD = 1e18
"""Largest absolute reward; a variance adds up squared rewards, which must fit a float32."""
LONGEST_DETAIL = 400


class RewardCall(Struct, frozen=True, kw_only=True):
    """The arguments of one call, as JSON values."""

    prompt: Any
    completion: str
    row: dict[str, Any]


class RewardProcess:
    """The process of one reward file, used by one caller at a time."""

    def __init__(
        self,
        path: str | Path,
        timeout_s: float,
        start_timeout_s: float = START_TIMEOUT_S,
        *,
        log: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Imports the file and inspects `reward`. Raises BadInput if it cannot be used.

        Its output goes to `log`, whose size is bounded; without `log` the output is dropped.
        """
        self._path = path
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._log = OutputLog(log)
        self._memory_bytes = memory_bytes
        self._process: Killable | None = None
        if not Path(path).is_file():
            came = "a directory" if Path(path).is_dir() else "nothing of that name"
            raise BadInput(f"{path}: needed a Python file with a reward function, found {came}")
        if problem := self._start():
            raise BadInput(f"{path}: {problem}")

    def score(self, calls: Sequence[RewardCall]) -> list[Verdict]:
        """Returns a verdict for each call in order; the time limit is that of one call."""
        return [self._score(call) for call in calls]

    def close(self) -> None:
        """Ends the process and its descendants."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _score(self, call: RewardCall) -> Verdict:
        if self._process is None or not self._process.alive():
            self.close()
            if problem := self._start():
                return _failed("died", f"could not be started again: {problem}")
        assert self._process is not None
        request = {"prompt": call.prompt, "completion": call.completion, "row": call.row}
        try:
            reply = self._process.ask(request, self._timeout_s)
        except TimedOut:
            return _failed("timed_out", f"no answer within {self._timeout_s:g} s")
        except OutOfMemory as cause:
            return _failed("out_of_memory", f"{cause}, of {self._memory_bytes / 1e9:.1f} GB")
        except Forged:
            return _failed("forged", "the reward, or what it evaluated, wrote to Pippin's own pipe")
        except Died as cause:
            return _failed("died", str(cause))
        verdict = judged(reply)
        if verdict is None:
            self.close()
            return _failed("forged", "the process answered with something that is no verdict")
        return verdict

    def _start(self) -> str:
        """Starts the process; returns why the file cannot be used, or "" if the process is ready."""
        path = str(Path(self._path).resolve())
        self._process = Killable(MODULE, path, self._log, self._memory_bytes)
        try:
            reply = self._process.ask({}, self._start_timeout_s)
            problem = reply["problem"] if isinstance(reply, dict) else "answers without being asked"
        except TimedOut:
            problem = f"did not import within {self._start_timeout_s:g} s"
        except Forged:
            problem = "does not import: it wrote to Pippin's own pipe"
        except (Died, OutOfMemory) as cause:
            problem = f"does not import: {cause}"
        if problem:
            self.close()
        return printable(str(problem), LONGEST_DETAIL)


def judged(reply: Any) -> Verdict | None:
    """Returns the verdict in a reply, or None if there is none.

    The reply is checked here because its process runs foreign code.
    """
    match reply:
        case {"reward": float(reward)} if not math.isfinite(reward):
            return _failed("not_a_number", f"needed a finite number, got {reward}")
        case {"reward": float(reward)} if abs(reward) > LARGEST_REWARD:
            return _failed(
                "out_of_range",
                f"needed a reward between -{LARGEST_REWARD:g} and {LARGEST_REWARD:g}, got {reward:g}",
            )
        case {"reward": float(reward)}:
            return Verdict(reward=reward)
        case {
            "failure": "raised" | "not_a_number" | "out_of_memory" as kind,
            "detail": str(detail),
        }:
            return _failed(kind, detail)
    return None


def _failed(kind: str, detail: str) -> Verdict:
    return Verdict(reward=None, failure=kind, detail=printable(detail, LONGEST_DETAIL))
