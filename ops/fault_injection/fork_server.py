"""Starts the processes of fault runs: a process that has imported everything and computed nothing is forked.

So a start costs milliseconds instead of seconds. On a Mac, where Metal does not survive a fork, each job
is an interpreter of its own.

    with ForkServer() as server:
        ended = server.do(Job(what="run", path=str(run.path), after_s=0.1, then="kill"))

A fork server does one job at a time; several servers do several.
"""

import contextlib
import importlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import msgspec

from ops.fault_injection.child import REQUEST, Ended, Job, be
from runtime.blas import EXACT_VARIABLE, load_blas
from runtime.rundir import RunDirectory

FORKS = platform.system() == "Linux"
POLL_S = 0.001
MODULES = ("actors.learner", "actors.program", "actors.sampler", "ops.fault_injection.facts")
"""The modules that import nearly everything else."""
ROOT = Path(__file__).parents[2]
SIGNALS = {"kill": signal.SIGKILL, "abort": signal.SIGABRT}
ENVIRONMENT = {
    EXACT_VARIABLE: "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


class ForkServer:
    """Starts jobs from the driver's side of a fork server."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="pippin-faults-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ops.fault_injection.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "PIPPIN_HOME": self._home.name},
        )

    def do(self, job: Job) -> Ended:
        """Starts a process for a job and waits for its end."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Ended)

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._home.cleanup()


def serve() -> None:
    """Serves job after job, until the driver has gone."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed gets between the replies
    if FORKS:
        load_blas(exact=True)
        _import(MODULES)
    for line in sys.stdin.buffer:
        replies.write(msgspec.json.encode(_do(msgspec.json.decode(line, type=Job))) + b"\n")
        replies.flush()


def _do(job: Job) -> Ended:
    began = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        results, theirs = os.pipe()
        pid = _start(job, theirs, printed.fileno())
        os.close(theirs)
        code = _wait(pid, job, began)
        seconds = time.monotonic() - began
        with os.fdopen(results, "rb") as pipe:
            result = pipe.read()
        printed.seek(0)
        ended = Ended(code=code, seconds=seconds, printed=printed.read().decode(errors="replace"))
    if result:
        ended.result, imported = msgspec.json.decode(result)
        if FORKS:
            _import(imported)
    return ended


def _start(job: Job, replies: int, printed: int) -> int:
    if not FORKS:
        child = subprocess.Popen(
            [sys.executable, "-m", "ops.fault_injection.fork_server", str(replies)],
            stdin=subprocess.PIPE,
            stderr=printed,
            pass_fds=[replies],
        )
        assert child.stdin
        child.stdin.write(msgspec.json.encode(job))
        child.stdin.close()
        return child.pid
    pid = os.fork()
    if not pid:
        os.dup2(printed, 2)
        be(job, replies)
    return pid


def _wait(pid: int, job: Job, began: float) -> int:
    """Returns the job's exit code, after doing on time what is to be done to it."""
    acted = not job.then
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if not acted and time.monotonic() - began >= job.after_s:
            acted = True
            if job.then == "pause":
                path = Path(job.path)
                RunDirectory(path.parent, path.name).ask_to_pause(REQUEST)
            else:
                os.kill(pid, SIGNALS[job.then])
        time.sleep(POLL_S)


def _import(modules: Iterable[str]) -> None:
    """Imports what a job has imported, so that the next job need not: some modules are imported when
    they are first used.
    """
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


if __name__ == "__main__":
    load_blas(exact=True)
    if len(sys.argv) > 1:
        be(msgspec.json.decode(sys.stdin.buffer.read(), type=Job), int(sys.argv[1]))
    serve()
