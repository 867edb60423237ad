"""The run directory: the paths and names of all files of a run, and its one writer.

    runs/NAME/
      run.json            schema version, name, time and versions at its start
      recipe.toml         the resolved settings
      status.json         the state of the run; replaced whole
      metrics.jsonl       one object for each step
      evals.jsonl         one object for each evaluation, and evals/ the answers themselves
      trajectories.log    every batch that reached the learner
      weights/            numbered versions
      checkpoints/        the states from which a run can be resumed
      logs/               one file for each actor; ray.json, ray.token while it runs
      pause.json          a request to pause; pause-machine.json: one by a condition of [power]
      machine.json        the supervisor's last readings of the machine
      report/             the output of `pippin report`

One process writes: the holder of `lock` (`runtime.run_lock`). `runtime.status`, `runtime.pause_request` and
`runtime.run_lines` define the contents of the files; this file has the paths and the names.
"""

import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runtime import run_lines, status
from runtime.durable import clear_leftovers, sync, write_file
from runtime.errors import BadInput
from runtime.home import PRIVATE
from runtime.pause_request import PauseRequest, PauseRequests
from runtime.run_lock import RunLock
from runtime.status import Machine, Status

SCHEMA_VERSION = 1
LONGEST_NAME = 100
"""Largest number of characters of a run's name, so that names made from it fit into 255 bytes."""
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class RunDirectory:
    """The paths of a run, and the operations on its files."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.path = root / name
        self._lock = RunLock(self.path)
        self._pauses = PauseRequests(self.path)

    @property
    def weights(self) -> Path:
        """Returns the folder with the numbered weights versions."""
        return self.path / "weights"

    @property
    def checkpoints(self) -> Path:
        """Returns the folder with the published checkpoints."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Returns the folder with one log file for each actor."""
        return self.path / "logs"

    @property
    def trajectories(self) -> Path:
        """Returns the path of the trajectory log."""
        return self.path / "trajectories.log"

    @property
    def recipe(self) -> Path:
        """Returns the path of the resolved settings."""
        return self.path / "recipe.toml"

    def create(self, recipe: str, about: dict[str, Any]) -> None:
        """Makes the run's folder and writes the files that do not change.

        Raises BadInput for a name that is taken, not a plain file name, or a root that cannot be written.
        """
        if not plain_name(self.name):
            raise BadInput(
                f"--name: needs letters, digits, '-', '_' and '.', a letter or digit first, at most "
                f"{LONGEST_NAME} in all; got {self.name!r:.120}"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=PRIVATE)
        except OSError as error:
            if self.path.parent.is_dir() and os.path.lexists(self.path):
                raise BadInput(
                    f"--name: a run {self.name!r} is there already ({self.path}); "
                    "choose another name"
                ) from None
            raise BadInput(
                f"--root: {self.path.parent} cannot be written: {error.strerror}"
            ) from None
        for folder in (self.weights, self.checkpoints, self.logs):
            folder.mkdir(mode=PRIVATE)
        write_file(self.recipe, recipe.encode())
        made = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            **about,
        }
        write_file(self.path / "run.json", json.dumps(made, indent=2, sort_keys=True).encode())
        sync(self.path.parent)

    def require(self) -> None:
        """Raises BadInput unless this is a run that this version can read."""
        path = self.path / "run.json"
        try:
            there = path.is_file()
        except PermissionError:
            raise BadInput(f"{self.path}: cannot be read: it is another user's") from None
        if not there:
            known = [p.name for p in runs(self.path.parent)]
            hint = f"; there are {', '.join(known)}" if known else ""
            raise BadInput(f"no run {self.name!r} in {self.path.parent}{hint}")
        try:
            version = int(json.loads(path.read_bytes())["schema_version"])
        except PermissionError:
            raise BadInput(f"{path}: cannot be read: it is another user's") from None
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{path}: is damaged, it names no schema version") from None
        if version > SCHEMA_VERSION:
            raise BadInput(
                f"{path}: schema version {version} is newer than this Pippin knows ({SCHEMA_VERSION})"
            )

    def about(self) -> dict[str, Any]:
        """Returns the content of run.json."""
        return json.loads((self.path / "run.json").read_bytes())

    # ── the writer, and requests to it ───────────────────────────────────────────────────────────

    def lock(self) -> None:
        """Makes this process the run's one writer until it ends, and clears a killed writer's leftovers.

        Raises BadInput if another process is the writer.
        """
        self._lock.take()
        for folder in (self.path, self.path / "evals"):
            clear_leftovers(folder)
        status.set_aside_if_damaged(self.path)

    def locked(self) -> bool:
        """Returns whether a process is this run's writer now."""
        return self._lock.is_held()

    def holder(self) -> int | None:
        """Returns the id of the writer's process, or of the last writer's; None if it is not known."""
        return self._lock.holder()

    def unlock(self) -> None:
        """Lets another process be the writer."""
        self._lock.release()

    def ask_to_pause(self, request: PauseRequest) -> None:
        """Writes a request to pause for the run's process."""
        self._pauses.ask(request)

    def pause_asked(self) -> bool:
        """Returns whether there is a request to pause."""
        return self._pauses.is_asked()

    def pause_request(self) -> PauseRequest | None:
        """Returns the request to pause, the user's before the machine's; None if there is none."""
        return self._pauses.read()

    def withdraw_pause(self, *, of_machine: bool = False) -> None:
        """Removes the requests to pause, or only the machine's."""
        self._pauses.withdraw(of_machine=of_machine)

    # ── status and lines ─────────────────────────────────────────────────────────────────────────

    def write_status(self, new: Status) -> None:
        """Replaces status.json."""
        status.write(self.path, new)

    def read_status(self) -> Status:
        """Returns the last status; `state` is "died" if the writer ended without writing another state."""
        self.require()
        return status.read(self.path, alive=self.locked())

    def write_machine(self, machine: Machine) -> None:
        """Replaces machine.json."""
        status.write_machine(self.path, machine)

    def settle(self, state: str, message: str = "") -> None:
        """Writes the status of a run whose conductor has ended: its end, or that it waits."""
        last = self.read_status()
        if last.state not in (state, "failed"):
            last.state, last.doing, last.since, last.pids = state, "", time.time(), {}
        last.message = message or last.message
        self.write_status(last)

    def append_line(self, file: str, record: Any) -> None:
        """Appends one JSON object to a .jsonl file of the run."""
        run_lines.append(self.path / file, record)

    def read_lines(self, file: str) -> list[dict[str, Any]]:
        """Returns the objects of a .jsonl file, without torn and damaged lines."""
        return run_lines.read(self.path / file)

    def keep_lines(
        self, file: str, last_step: int, needed: Iterable[tuple[int, str | None]] = ()
    ) -> str:
        """Drops the objects of steps after `last_step`; returns a sentence if `needed` ones are lost."""
        return run_lines.keep(self.path / file, last_step, needed)


def plain_name(name: str) -> bool:
    """Returns whether a run can have this name, which shells and option parsers must not misread."""
    fits = 0 < len(name) <= LONGEST_NAME
    return fits and set(name) <= NAME_CHARACTERS and not name.startswith((".", "-"))


def runs(root: Path) -> list[Path]:
    """Returns the folders of the runs under a root, oldest first."""
    found = [p.parent for p in root.glob("*/run.json")] if root.is_dir() else []
    return sorted(found, key=lambda p: (p / "run.json").stat().st_mtime)


def free_name(root: Path, stem: str) -> str:
    """Returns the first of stem-1, stem-2, … that is not taken."""
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"
