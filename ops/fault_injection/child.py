"""The process of a fault run: one start of a run, from wherever it stands to wherever it ends.

This process stands for the run's supervisor and host, with the actors as plain objects in it. So the whole
run dies at once, at any place, and takes a tenth of a second to start again.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from actors.messages import Restored
from configs import SettingsError, load
from ops.host import BAD_INPUT, DONE, FAILED, PAUSED
from ops.preflight import check_same_run
from runtime import failpoints
from runtime.errors import BadInput, Interrupted, PippinError
from runtime.failpoints import Plan
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory

LIMIT_S = 120
"""The seconds after which the kernel ends a fault run, even if all other processes of it are gone."""
REQUEST = PauseRequest(by="user", reason="a fault run", end=True)


class Job(Struct, kw_only=True):
    """Says what a process is started for."""

    what: str
    """"run", "restore" or "examine" a run, write the "model", or report the "numerics" of this machine."""
    path: str
    more: list[str] = []
    """Further runs to restore: a process for each would cost more than restoring them."""
    plans: list[tuple[str, int, str]] = []
    """Failpoint, hit and action of each plan: the actions of `failpoints`, "pause", or "full for good"."""
    marks: str = ""
    """The folder that remembers which plans have fired."""
    after_s: float = 0.0
    then: str = ""
    """What is done from outside at that time: "kill", "abort" or "pause"."""


class Ended(Struct, kw_only=True):
    """Says how a process ended."""

    code: int
    """The exit code as ops.host has them, or minus the signal."""
    seconds: float
    result: Any = None
    """The result of the job, unless it was killed."""
    printed: str = ""
    """The output on the process's standard error."""


class Start(Struct, kw_only=True):
    """Holds the result of one start of a run, however it ends."""

    sentence: str
    """The reason why the run could not go on."""
    reached: dict[str, int]
    """The hits of each failpoint."""


class Stand(Struct, kw_only=True):
    """Says where a learner stands once it has restored a run."""

    code: int = DONE
    sentence: str = ""
    """The reason why it could not restore."""
    note: str = ""
    """The damage that was passed over."""
    step: int = 0
    digest: str = ""
    """A digest of all that the learner knows then: the rest of the run follows from that."""


def main(job: Job) -> tuple[int, Any]:
    """Does a job. Returns the exit code and the job's result."""
    signal.alarm(LIMIT_S)
    path = Path(job.path)
    if job.what == "model":
        from ops.fault_injection.programs import write_models

        write_models(path)
        return DONE, None
    if job.what == "numerics":
        from ops.fault_injection.numerics import fingerprint

        return DONE, fingerprint()
    run = RunDirectory(path.parent, path.name)
    failpoints.arm(*(_plan(run, *plan) for plan in job.plans), folder=_folder(job.marks))
    match job.what:
        case "run":
            code, sentence = _attempt(run, lambda: _run(run))
            return code, Start(sentence=sentence, reached=dict(failpoints.reached))
        case "restore":
            return DONE, [
                _stand(RunDirectory(p.parent, p.name)) for p in (path, *map(Path, job.more))
            ]
        case "examine":
            from ops.fault_injection.facts import examine

            failpoints.disarm()
            return DONE, examine(run)
    raise ValueError(f"no job {job.what!r}")


def _attempt(run: RunDirectory, body: Callable[[], None]) -> tuple[int, str]:
    """Ends a run as ops.supervise and ops.host do. Returns the exit code, and the one sentence that a
    person sees.
    """
    try:
        run.lock()
        body()
    except Interrupted as error:
        run.settle("paused")
        return PAUSED, str(error)
    except (PippinError, SettingsError) as error:
        with contextlib.suppress(PippinError):  # the disk may still be full
            run.settle("failed", str(error))
        code = BAD_INPUT if isinstance(error, BadInput | SettingsError) else FAILED
        return code, str(error)
    except Exception as error:
        with contextlib.suppress(PippinError):
            run.settle("failed", f"{type(error).__name__}: {error}")
        return FAILED, f"{type(error).__name__}: {error}"
    return DONE, ""


def _run(run: RunDirectory) -> None:
    from actors.conductor import Conductor
    from actors.program import local_actor_system

    settings = load(run.recipe)
    check_same_run(run, settings)
    system = local_actor_system(settings, run)
    try:
        asyncio.run(Conductor(settings, run, system).run())
    finally:
        system.stop()


def _stand(run: RunDirectory) -> Stand:
    found: list[Stand] = []
    code, sentence = _attempt(run, lambda: found.append(_restore(run)))
    return found[0] if found else Stand(code=code, sentence=sentence)


def _restore(run: RunDirectory) -> Stand:
    """Starts a run as far as the learner's work goes."""
    from actors.handles import ActorId
    from actors.program import local_actor_system
    from runtime.trajectory import digest

    settings = load(run.recipe)
    check_same_run(run, settings)
    system = local_actor_system(settings, run)
    learner = system.start(ActorId("learner"))
    restored: Restored = learner.restore.remote().value()
    rows = [learner.earlier.remote(w.purpose, w.step).value() for w in restored.unfinished]
    system.stop()
    told = msgspec.json.encode(msgspec.structs.replace(restored, note="", weights=None))
    told = told.replace(str(run.path).encode(), b"")  # a weights version is named by its path
    told += b"".join(digest(row).encode() for row in rows if row is not None)
    return Stand(
        note=restored.note, step=restored.state.step, digest=hashlib.sha256(told).hexdigest()
    )


def _plan(run: RunDirectory, point: str, nth: int, action: str) -> Plan:
    calls = {"pause": lambda: run.ask_to_pause(REQUEST), "full for good": _full_for_good}
    return Plan(point=point, nth=nth, action=calls.get(action, action))


def _full_for_good() -> None:
    failpoints.arm(Plan(point="disk.write", nth=0, action="full"))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _folder(marks: str) -> Path | None:
    return Path(marks) if marks else None


def be(job: Job, replies: int) -> None:
    """Does the job of this process: its result goes down the pipe, with the modules that it has
    imported. Does not return.
    """
    code, before = FAILED, set(sys.modules)
    try:
        code, result = main(job)
        os.write(replies, msgspec.json.encode((result, sorted(sys.modules.keys() - before))))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without clean-up, which a run does not need
