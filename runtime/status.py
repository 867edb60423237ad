"""The state of a run: status.json, which its conductor replaces whole, and machine.json beside it.

Neither file is synced to the disk, so a power cut may leave anything in them; a resume needs nothing of them.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from runtime.durable import write_file
from runtime.errors import BadInput
from runtime.ledger import Ledger

STATUS, MACHINE = "status.json", "machine.json"
PASS_AT_1 = "pass@1"
PASS_AT_1_SAMPLED = "pass@1 at temperature 1"
PREFERENCE_ACCURACY, REWARD_MARGIN = "preference_accuracy", "reward_margin"
ALIVE = ("starting", "running", "pausing")
"""States in which the run has a process."""


class EvalResult(Struct, frozen=True, kw_only=True):
    """One evaluation of one weights version."""

    step: int
    task: str
    metric: str
    score: float | None
    """None if no answer could be scored."""
    n: int
    """Number of answers that were scored."""
    stderr: float
    """Standard error of the score."""
    mean_tokens: float
    truncated: float
    """Share of answers that reached the length limit."""
    failed: int = 0
    """Number of answers that could not be scored; they are not in `n`."""


class Machine(Struct, kw_only=True):
    """The supervisor's last readings of the machine: the content of machine.json."""

    memory_bytes: int = 0
    """Resident memory of all the run's processes."""
    free_disk_bytes: int = 0
    on_battery: bool | None = None
    thermal_pressure: str | None = None
    duty_cycle: float = 1.0


class Status(Struct, kw_only=True):
    """The state of a run: the content of status.json."""

    name: str
    state: str = "starting"
    """One of starting, running, pausing, paused, stopped, finished and failed; `read` adds "died"."""
    doing: str = ""
    since: float = 0.0
    """Unix time of the last change of `doing`."""
    step: int = 0
    steps: int = 0
    message: str = ""
    """The first cause of a failure."""
    evals: list[EvalResult] = []
    ledger: dict[str, Any] = msgspec.field(default_factory=lambda: Ledger().as_dict())
    weights_digest: str = ""
    optimizer_digest: str = ""
    trajectories_digest: str = ""
    metrics: dict[str, float] = {}
    pids: dict[str, int] = {}
    dashboard: str = ""
    seconds: float = 0.0
    """Wall-clock time of the run so far, without the time in which it did not run."""
    eta_s: float | None = None
    machine: Machine = msgspec.field(default_factory=Machine)
    alive: bool = False
    """True if the supervisor's process exists, even if it waits; set by `read`."""

    def of_metric(self, metric: str) -> list[EvalResult]:
        """Returns the evaluations by a metric, oldest first."""
        return [result for result in self.evals if result.metric == metric]


def write(folder: Path, status: Status) -> None:
    """Replaces status.json."""
    write_file(folder / STATUS, msgspec.json.encode(status), durable=False)


def write_machine(folder: Path, machine: Machine) -> None:
    """Replaces machine.json."""
    write_file(folder / MACHINE, msgspec.json.encode(machine), durable=False)


def read(folder: Path, *, alive: bool) -> Status:
    """Returns the last status of a run whose writer is `alive` or not.

    `state` is "died" if the writer ended without writing another state. Raises BadInput for a damaged file.
    """
    status = _stored(folder)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        status.machine = msgspec.json.decode((folder / MACHINE).read_bytes(), type=Machine)
    status.alive = alive
    if status.state in ALIVE and not alive:
        status.state = "died"
        status.message = status.message or "its process is gone; see the logs"
    return status


def set_aside_if_damaged(folder: Path) -> None:
    """Renames a status.json that cannot be read, so that the run goes on without it."""
    try:
        _stored(folder)
    except BadInput:
        os.replace(folder / STATUS, folder / f"{STATUS}.damaged")


def _stored(folder: Path) -> Status:
    path = folder / STATUS
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except FileNotFoundError:
        return Status(name=folder.name)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is damaged: {error}") from None
