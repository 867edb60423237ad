"""The watchdog of a run's processes: when the supervisor dies, however it dies, they end within seconds.

A process of its own that only waits: the supervisor holds the other end of its standard input, and the
kernel closes that for a dead process. It kills what is in the host's session and clears its files away.

    supervisor ── holds ──▶ watchdog ── kills ──▶ host, Ray's daemons, actors
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from ops import processes, temp_folder

SESSION_FILES = ("ray.json", "ray.token")


def start(host: int, temp: Path, run: Path) -> "subprocess.Popen[bytes]":
    """Starts the watchdog of a host process. The caller must `kill` it when the host has been cleared
    away.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "ops.watchdog", str(host), str(temp), str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    )


def clear_away(host: int, temp: Path, run: Path) -> None:
    """Ends the host's session, and removes its folder and the run's files that say where it was."""
    processes.end(host, str(temp))
    temp_folder.remove(temp)
    for name in SESSION_FILES:
        (run / name).unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Waits for the supervisor's end, then clears away."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 64):
        pass
    clear_away(int(arguments[0]), Path(arguments[1]), Path(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
