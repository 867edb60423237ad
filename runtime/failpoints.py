"""Failpoints: named places at which a fault can be injected, such as a kill, an exception or a full disk.

A disarmed failpoint costs one comparison. A test arms failpoints in its own process (`arm`), or in child
processes by the environment. A folder records which ones have fired, so that a restarted process goes on:

    PIPPIN_FAILPOINTS="checkpoint.before_rename@2=kill" PIPPIN_FAILPOINTS_DIR=/tmp/marks

kills the process that reaches that point for the second time.
"""

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

POINTS = {
    "disk.write": "before any write to the run directory",
    "file.before_rename": "a small file is written under a temporary name and synced",
    "file.after_rename": "the file has its name, the folder is not synced",
    "weights.before_rename": "a weights file is written under a temporary name",
    "weights.after_rename": "the weights file has its name",
    "log.before_append": "a batch is about to be appended to the trajectory log",
    "log.mid_record": "half of a record is written",
    "log.after_append": "the record is written, not synced",
    "log.after_sync": "the log is synced",
    "checkpoint.begin": "the checkpoint's temporary folder exists, empty",
    "checkpoint.files": "weights, optimiser and unfinished rows are in the folder",
    "checkpoint.manifest": "state and manifest are in the folder",
    "checkpoint.before_rename": "all files of the folder are synced",
    "checkpoint.after_rename": "the folder has its name, the parent is not synced",
    "checkpoint.published": "the checkpoint is acknowledged",
    "checkpoint.retire_renamed": "an old checkpoint is renamed, nothing is deleted",
    "checkpoint.retired": "an old checkpoint is deleted",
    "sample.begin": "a sampler has its request",
    "sample.token": "between two tokens of a sampler",
    "sample.done": "all is sampled, the result is not returned",
    "verify.begin": "a verifier has its batch",
    "verify.row": "between two verdicts",
    "verify.done": "all is judged, the result is not returned",
    "teach.begin": "a teacher has its request",
    "teach.part": "between two tokens or micro-batches of a teacher",
    "teach.done": "all is answered or scored, the result is not returned",
    "learn.begin": "the learner has a step's batches",
    "learn.micro_batch": "between two micro-batches",
    "learn.updated": "the weights are new in memory, nothing is written",
    "learn.logged": "the step's batch is in the log, its weights are not published",
    "learn.done": "all is durable, the result is not returned",
    "eval.prompts": "the evaluator hands out its prompts",
    "eval.summed_up": "an evaluation is counted, its answers are not written",
    "eval.done": "an evaluation's answers are written, the result is not returned",
    "eval.noted": "the evaluation's line is written",
    "step.collected": "a step's answers are all judged",
    "step.learned": "the learner has answered, the step is not noted",
    "step.noted": "the step's line is written",
    "pause.seen": "the conductor has read a request to pause",
    "pause.saved": "unfinished trajectories are durable",
    "restore.begin": "the newest checkpoint is verified",
    "restore.log": "the log is cut to the checkpoint's length",
    "restore.done": "the checkpoint's weights are published again",
}
"""Every failpoint by name, with the state of the run at that place; no other names are allowed."""

ACTIONS = ("kill", "abort", "exit", "raise", "full")
VARIABLE = "PIPPIN_FAILPOINTS"
FOLDER_VARIABLE = "PIPPIN_FAILPOINTS_DIR"


class Injected(RuntimeError):
    """The error that a failpoint raises, which no code handles."""


class Plan(Struct):
    """The action at one failpoint."""

    point: str
    nth: int
    """Number of the hit at which it acts, counted in this process from 1; 0 for every hit."""
    action: str | Callable[[], None]


_plans: list[Plan] | None = None
_folder: Path | None = None
reached: Counter[str] = Counter()
"""Number of hits by name while armed."""


def hit(name: str) -> None:
    """Marks the place `name`, and acts if a plan for it is armed."""
    if _plans is not None:
        _hit(name)


def arm(*plans: Plan, folder: Path | None = None) -> None:
    """Arms failpoints in this process; without plans hits are only counted."""
    global _plans, _folder
    for plan in plans:
        if plan.point not in POINTS:
            raise ValueError(f"no failpoint {plan.point!r}")
    _plans, _folder = list(plans), folder
    reached.clear()


def disarm() -> None:
    """Disarms all failpoints."""
    global _plans, _folder
    _plans = _folder = None


def arm_from_environment() -> None:
    """Arms the failpoints in PIPPIN_FAILPOINTS: `name@nth=action`, separated by commas."""
    if VARIABLE not in os.environ:
        return
    plans = []
    for text in filter(None, os.environ[VARIABLE].split(",")):
        place, _, action = text.partition("=")
        name, _, nth = place.partition("@")
        if action not in ACTIONS:
            raise ValueError(f"{VARIABLE}: {text!r} needs one of {', '.join(ACTIONS)}")
        plans.append(Plan(point=name, nth=int(nth or 1), action=action))
    folder = os.environ.get(FOLDER_VARIABLE)
    arm(*plans, folder=Path(folder) if folder else None)


def _hit(name: str) -> None:
    if name not in POINTS:
        raise ValueError(f"no failpoint {name!r}")
    reached[name] += 1
    if _folder is not None and reached[name] == 1:
        (_folder / f"reached-{name}").touch()
    for plan in _plans or ():
        if plan.point == name and plan.nth in (0, reached[name]) and _first_time(plan):
            _act(plan)


def _first_time(plan: Plan) -> bool:
    """Returns True once among all processes that share a folder; without a folder, always."""
    if _folder is None:
        return True
    try:
        descriptor = os.open(_folder / f"fired-{plan.point}-{plan.nth}", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    os.close(descriptor)
    return True


def _act(plan: Plan) -> None:
    match plan.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "raise":
            raise Injected(f"injected at {plan.point}")
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case str():
            raise ValueError(f"no action {plan.action!r}")
        case call:
            call()


arm_from_environment()
