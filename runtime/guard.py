"""The guard of one foreign process: a small process that starts it, limits it, and ends its whole tree.

    Pippin ── "?" look ───▶ guard ── starts, stops, kills ──▶ foreign process ──▶ its descendants
           ── (closed) ───▶           ends them all, and then itself
           ◀── a report ──            "started 71", then "exit 3", "signal 9" or "memory 4400000000"

The guard is a process of its own because it must outlive both sides. When Pippin's process dies in any way,
the pipe closes and the guard kills. When the foreign process dies first, its descendants become children of
the guard (Linux: PR_SET_CHILD_SUBREAPER), however often they forked and whatever session they moved to. On
other systems the guard knows the foreign process's group, its descendants, and its descendants in an earlier
look.

The script imports little, to start fast: python -I -S guard.py REQUESTS REPLIES OUTPUT MEMORY COMMAND
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from typing import NamedTuple

ORDERS, REPORT = 0, 1
MOST_PROCESSES = 512
"""Largest number of processes, at which a fork bomb is ended; a machine has room for thousands."""
ENDING_S = 5.0
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, of <sys/prctl.h>
LINUX = sys.platform == "linux"
COLUMNS = "pid=,ppid=,pgid=,rss=,stat=,lstart="


class Process(NamedTuple):
    """A process in one look at the process table."""

    parent: int
    group: int
    memory_bytes: int
    """Resident memory; pages that several processes share count in each."""
    dead: bool
    started: str


def main(arguments: list[str]) -> None:
    """Guards one process from its start until it and all its descendants are gone."""
    requests, replies, output, memory_bytes = map(int, arguments[:4])
    if LINUX:
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    pid = _start((requests, replies, output), memory_bytes, arguments[4:])
    for descriptor in (requests, replies, output):
        os.close(descriptor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    _report(f"started {pid}")
    tree = Tree(pid)
    _report(_watch(tree, memory_bytes))
    tree.end()


def _start(descriptors: tuple[int, int, int], memory_bytes: int, command: list[str]) -> int:
    """Starts the command in a session of its own, with its limits, and returns its process id."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        limit(memory_bytes)
        for standard, descriptor in enumerate(descriptors):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        os.execv(command[0], command)
    finally:
        os._exit(127)


def limit(memory_bytes: int) -> None:
    """Limits this process permanently: no core files, and on Linux `memory_bytes` of private memory.

    RLIMIT_DATA counts memory that is writable and not shared, and so not the gigabytes of addresses that a
    library reserves. macOS accepts no such limit, so only the looks find too much memory there.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if LINUX:
        with contextlib.suppress(ValueError, OSError):  # a stricter limit is there already
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _watch(tree: "Tree", memory_bytes: int) -> str:
    """Waits until the process or the parent ends, or a limit is passed; returns the report's last line."""
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        if ending := tree.reap():
            return ending
        ready = select.select([ORDERS, woken], [], [])[0]
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        if ORDERS in ready:
            if not os.read(ORDERS, 64):
                return "closed"
            if excess := tree.excess(memory_bytes):
                return excess


class Tree:
    """The guarded process and its descendants."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: dict[int, str] = {}
        """Start times of the descendants in the last look, for systems on which orphans leave the guard."""

    def reap(self) -> str:
        """Reaps dead children; returns how the guarded process ended, or "" while it lives."""
        ending = ""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self._pid:
                    code = os.waitstatus_to_exitcode(found[1])
                    ending = f"signal {-code}" if code < 0 else f"exit {code}"
        return ending

    def excess(self, memory_bytes: int) -> str:
        """Returns the report's line if there are too many processes or they hold too much memory, else ""."""
        found = self.look()
        if len(found) > MOST_PROCESSES:
            return f"processes {len(found)}"
        held = sum(process.memory_bytes for process in found.values())
        if held > memory_bytes and LINUX:  # forks share pages, which this counts once
            held = sum(map(_proportional_bytes, found))
        return f"memory {held}" if held > memory_bytes else ""

    def look(self) -> dict[int, Process]:
        """Returns the live processes: descendants, the group, and those found in an earlier look."""
        table = _linux_table() if LINUX else ps_table()
        found = {os.getpid()} | {
            pid for pid, process in table.items()
            if process.group == self._pid or self._known.get(pid) == process.started
        }  # fmt: skip
        while more := {pid for pid, p in table.items() if p.parent in found} - found:
            found |= more
        found.discard(os.getpid())
        live = {pid: table[pid] for pid in found if not table[pid].dead}
        self._known = {pid: process.started for pid, process in live.items()}
        return live

    def end(self) -> None:
        """Stops all processes, so that none can fork, then kills them, until none is left or for ENDING_S."""
        until = time.monotonic() + ENDING_S
        stopped: set[int] = set()
        self.reap()
        while (found := self.look()) and time.monotonic() < until:
            fresh = found.keys() - stopped
            _signal({pid: found[pid] for pid in fresh}, signal.SIGSTOP)
            stopped |= fresh
            if not fresh or len(stopped) > MOST_PROCESSES:
                _signal(found, signal.SIGKILL)
                stopped.clear()
                time.sleep(0.002)
            self.reap()


def _signal(processes: dict[int, Process], number: int) -> None:
    """Signals whole groups, from which a fork cannot escape, and then each process by itself."""
    for group in {process.group for process in processes.values()} - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _linux_table() -> dict[int, Process]:
    """Returns every process in Linux's /proc."""
    table: dict[int, Process] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            with open(f"/proc/{name}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].decode().split()
            memory_bytes = int(fields[21]) * resource.getpagesize()
            dead = fields[0] in "ZX"
            table[int(name)] = Process(
                int(fields[1]), int(fields[2]), memory_bytes, dead, fields[19]
            )
    return table


def _proportional_bytes(pid: int) -> int:
    """Returns a process's resident memory on Linux; a page that n processes share counts as one nth."""
    ended = contextlib.suppress(OSError, ValueError, IndexError)
    with ended, open(f"/proc/{pid}/smaps_rollup") as sizes:
        for line in sizes:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def ps_table() -> dict[int, Process]:
    """Returns every process of the machine except the `ps` that lists them."""
    import subprocess  # imported here, because the import takes as long as all the rest

    asked = subprocess.Popen(
        ["/bin/ps", "-axo", COLUMNS],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, errors="replace", env={"LC_ALL": "C"},
    )  # fmt: skip
    table: dict[int, Process] = {}
    for line in asked.communicate()[0].splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6:
            pid, parent, group, kilobytes = map(int, fields[:4])
            dead = fields[4].startswith("Z")
            table[pid] = Process(parent, group, kilobytes << 10, dead, fields[5])
    table.pop(asked.pid, None)
    return table


def _report(line: str) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        os.write(REPORT, line.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
