"""A Python process that answers in JSON lines and can be killed at any moment.

It is started by exec, never by fork: a forked copy of a process that holds the GPU or threads is
undefined on a Mac. It leads its own session, so that a kill takes its children along. It cannot
outlive us: when we die, by whatever death, a pipe closes and the watchdog, a shell that only waits
for that, kills the group. That needs nothing from the process, which may well hang in C code.

    us ──── request ────▶ stdin  ┐ module, in its own session and group
       ◀──── reply ────── stdout ┘ stderr: ours
       ──── (nothing) ──▶ watchdog     end of file: kill -9 the group
"""

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.clock import Deadline
from runtime.proxies import unsealed

ROOT = Path(__file__).resolve().parents[1]
SECRET = re.compile(r"^RAY_|TOKEN|KEY|SECRET|PASS(WORD|WD|PHRASE)|CREDENTIAL|AUTH", re.IGNORECASE)
"""Names of variables that foreign code has no use for."""
LOOK_S = 0.05
"""How often to look whether the process is alive: a grandchild may hold its pipe open."""
LONGEST_REPLY_BYTES = 1 << 20
LEASH = 'read -r _; kill -s KILL -- "-$1"'  # dash takes no "--" after "-9"


class TimedOut(Exception):
    """No answer within the limit; the process has been killed."""


class Died(Exception):
    """The process ended, or answered out of turn and has been killed. The message says how."""


class Killable:
    """``python -m module argument``, asked one question at a time."""

    def __init__(self, module: str, argument: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-u", "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(os.environ),
            start_new_session=True,
            bufsize=0,
        )
        self.pid = self._process.pid
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", LEASH, "watchdog", str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout
        self._requests = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: Any, limit_s: float) -> Any:
        """The answer to one request; None asks nothing and waits for the process to speak.

        Raises TimedOut or Died; the process and its group are gone then. While we are frozen or
        the machine sleeps the limit does not run: the process could not work either.
        """
        outgoing = b"" if request is None else json.dumps(request).encode() + b"\n"
        try:
            return json.loads(self._exchange(outgoing, Deadline(limit_s)))
        except TimedOut:
            self.kill()
            raise
        except (OSError, ValueError, RecursionError):  # a broken pipe, a line that is not JSON
            raise Died(self._cause()) from None

    def kill(self) -> None:
        """End the process and everything in its group. Does nothing the second time."""
        self._leash.kill()  # first: it must not shoot at a number that is someone else's by then
        self._leash.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._leash.stdin):
            if pipe:
                pipe.close()

    def _exchange(self, outgoing: bytes, deadline: Deadline) -> bytes:
        incoming = b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._replies, selectors.EVENT_READ)
            if outgoing:
                ready.register(self._requests, selectors.EVENT_WRITE)
            while True:
                left_s = deadline.left_s()
                events = ready.select(min(left_s, LOOK_S))
                for key, _ in events:
                    if key.fd == self._requests:
                        outgoing = outgoing[os.write(self._requests, outgoing) :]
                        if not outgoing:
                            ready.unregister(self._requests)
                        continue
                    incoming += (chunk := os.read(self._replies, 1 << 16))
                    if incoming.endswith(b"\n"):
                        return incoming
                    if not chunk or len(incoming) > LONGEST_REPLY_BYTES:
                        raise ValueError("closed its pipe" if not chunk else "spoke too long")
                if not events and not self.alive():
                    raise ValueError("ended")
                if left_s <= 0:
                    raise TimedOut

    def _cause(self) -> str:
        """Why there is no answer, from the exit code if it ended by itself. Kills what is left."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the process closed its pipe or answered out of turn"
        finally:
            self.kill()
        if code < 0:
            return f"the process was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"the process ended with exit code {code}"


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Our environment without Ray's variables and whatever is named like a secret.

    String hashes are fixed, so that foreign code which iterates over a set repeats itself.
    """
    kept = {n: value for n, value in unsealed(ours).items() if not SECRET.search(n)}
    path = [str(ROOT), *filter(None, [ours.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"}
