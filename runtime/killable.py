"""A Python process that answers one question at a time and can be killed at any moment.

The process is started by exec, never by fork: on a Mac, the behaviour of a forked copy of a process that
holds the GPU or threads is undefined. A guard (`runtime/guard.py`) stands between the process and Pippin. It
kills the process and all its descendants on request, and also when Pippin's process dies in any way.

    Pippin ──── nonce, request ────▶ stdin  ┐ module, in its own session
           ◀─── nonce, reply ─────── stdout │
           ◀─── printed output ───── stderr ┘ kept in a log of bounded size
           ──── look ──────────────▶ guard    end of file: end them all

Each question has a nonce, and a reply without it is a forgery. So a text that the process evaluates cannot
answer by writing to descriptors that it finds.
"""

import contextlib
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runtime.clock import Deadline
from runtime.foreign_environment import environment
from runtime.output_log import OutputLog

ROOT = Path(__file__).resolve().parents[1]
GUARD = ROOT / "runtime" / "guard.py"
LOOK_S = 0.5
"""Seconds between the guard's looks at the processes and their memory while a question is open."""
WAIT_S = 0.05
LONGEST_REPLY_BYTES = 1 << 20
LAST_OUTPUT_BYTES = 1 << 20
"""Printed bytes that are read once the answer is there, since a thread may print for ever."""
MEMORY_BYTES = 4 << 30
GUARD_ENDS_S = 8.0
MARKER = "PIPPIN_GUARDED"
"""Environment variable that all descendants inherit; by it they are found if the guard was killed."""


class TimedOut(Exception):
    """There was no answer within the limit; the process has been killed."""


class Died(Exception):
    """The process ended, or answered out of turn and has been killed; the message has the reason."""


class OutOfMemory(Exception):
    """The process and its descendants held too much memory, and have been killed."""


class Forged(Exception):
    """An answer without the question's nonce came; the process has been killed."""


class Killable:
    """The process ``python -m module argument``, asked one question at a time."""

    def __init__(
        self,
        module: str,
        argument: str,
        log: OutputLog | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._log = log or OutputLog(None)
        self._marker = secrets.token_hex(16)
        child_in, self._requests = os.pipe()
        self._replies, child_out = os.pipe()
        self._output, child_err = os.pipe()
        child = (child_in, child_out, child_err)
        guard = [sys.executable, "-I", "-S", "-B", str(GUARD), *map(str, (*child, memory_bytes))]
        command = [sys.executable, "-P", "-B", "-u", "-m", module, argument]
        self._guard = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=child,
            env={**environment(os.environ, str(ROOT)), MARKER: self._marker},
            start_new_session=True,
            bufsize=0,
        )
        for descriptor in child:
            os.close(descriptor)
        assert self._guard.stdin and self._guard.stdout
        self._orders, self._reports = self._guard.stdin.fileno(), self._guard.stdout.fileno()
        self._report = b""
        self._looked = time.monotonic()
        self._open = True
        for ours in (self._requests, self._replies, self._output, self._orders, self._reports):
            os.set_blocking(ours, False)

    def alive(self) -> bool:
        """Returns whether the process can be asked."""
        return self._open and not self._read_report()

    def ask(self, request: Any, limit_s: float, longest_bytes: int = LONGEST_REPLY_BYTES) -> Any:
        """Returns the answer to one request, decoded from JSON of at most `longest_bytes`.

        Raises TimedOut, OutOfMemory, Forged or Died; the process and its descendants are then gone. Time in
        which Pippin's process is frozen or the machine sleeps does not count, because the process could not
        work either.
        """
        nonce = secrets.token_hex(16).encode()
        try:
            outgoing = b"%s %s\n" % (nonce, json.dumps(request).encode())
            came, _, answer = self._exchange(outgoing, Deadline(limit_s), longest_bytes).partition(
                b" "
            )
            if not secrets.compare_digest(came, nonce):
                raise Forged
            return json.loads(answer)
        except (TimedOut, Forged):
            self.kill()
            raise
        except (OSError, ValueError, RecursionError):  # a broken pipe, a line that is not JSON
            raise self._cause() from None
        finally:
            self._end_output()

    def kill(self) -> None:
        """Ends the process and its descendants; does nothing the second time."""
        if not self._open:
            return
        assert self._guard.stdin and self._guard.stdout
        self._guard.stdin.close()
        try:
            self._guard.wait(GUARD_ENDS_S)
        except subprocess.TimeoutExpired:  # it was stopped
            self._guard.kill()
            self._guard.wait()
        self._read_report()
        if self._guard.returncode:
            self._end_unguarded()
        self._end_output()
        self._open = False
        self._guard.stdout.close()
        for ours in (self._requests, self._replies, self._output):
            os.close(ours)

    def _exchange(self, outgoing: bytes, deadline: Deadline, longest_bytes: int) -> bytes:
        incoming = b""
        with selectors.DefaultSelector() as ready:
            for ours in (self._replies, self._output, self._reports):
                ready.register(ours, selectors.EVENT_READ)
            ready.register(self._requests, selectors.EVENT_WRITE)
            while True:
                left_s = deadline.left_s()
                for key, _ in ready.select(min(left_s, WAIT_S)):
                    if key.fd == self._requests:
                        outgoing = outgoing[os.write(self._requests, outgoing) :]
                        if not outgoing:
                            ready.unregister(self._requests)
                    elif key.fd == self._replies:
                        incoming += (chunk := os.read(self._replies, 1 << 16))
                        if incoming.endswith(b"\n"):
                            return incoming
                        if not chunk or len(incoming) > longest_bytes:
                            raise ValueError("closed its pipe" if not chunk else "spoke too long")
                    elif key.fd == self._output:
                        self._log.take(chunk := os.read(self._output, 1 << 16))
                        if not chunk:
                            ready.unregister(self._output)
                    elif self._read_report():
                        raise ValueError("ended")
                if left_s <= 0:
                    raise TimedOut
                self._look_now_and_then()

    def _look_now_and_then(self) -> None:
        """Makes the guard look, at most once in LOOK_S, counted over short calls as over long ones."""
        now = time.monotonic()
        if now - self._looked > LOOK_S:
            self._looked = now
            with contextlib.suppress(BlockingIOError):  # a guard that was stopped
                os.write(self._orders, b"?")

    def _read_report(self) -> bool:
        """Reads the guard's report; returns whether the process or the guard itself has ended."""
        try:
            while chunk := os.read(self._reports, 4096):
                self._report += chunk
        except BlockingIOError:
            return self._report.count(b"\n") > 1
        return True

    def _end_output(self) -> None:
        """Reads the printed output that is left, and writes the call's output to the log."""
        taken = 0
        with contextlib.suppress(BlockingIOError):  # nothing there now
            while (
                self._open
                and taken < LAST_OUTPUT_BYTES
                and (chunk := os.read(self._output, 1 << 16))
            ):
                self._log.take(chunk)
                taken += len(chunk)
        self._log.end_call()

    def _cause(self) -> Exception:
        """Kills the remaining processes and returns why there is no answer, by the guard's report."""
        until = Deadline(1.0)
        while not self._read_report() and not until.expired():
            time.sleep(0.005)
        self.kill()
        lines = self._report.decode(errors="replace").splitlines()
        kind, _, number = (lines[1] if len(lines) > 1 else "lost 0").partition(" ")
        match kind:
            case "signal":
                name = signal.strsignal(int(number))
                return Died(f"the process was ended by signal {number} ({name})")
            case "exit":
                return Died(f"the process ended with exit code {number}")
            case "memory":
                return OutOfMemory(f"it and what it started held {int(number) / 1e9:.1f} GB")
            case "processes":
                return Died(f"it started {number} processes and was ended")
            case "lost":
                return Died("the process ended its guard")
        return Died("the process closed its pipe or answered out of turn")

    def _end_unguarded(self) -> None:
        """Ends the descendants of a killed guard, found by the marker on Linux, elsewhere by the group."""
        started = re.match(rb"started (\d+)\n", self._report)
        if not sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                if started:
                    os.killpg(int(started[1]), signal.SIGKILL)
            return
        marker = f"{MARKER}={self._marker}".encode()
        until = Deadline(2.0)
        while (found := list(marked(marker))) and not until.expired():
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def marked(marker: bytes) -> list[int]:
    """Returns the ids of live processes that were started with `marker` in their environment (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
