"""The run directory: where everything that a run is lies on disk, and who may write there.

    runs/NAME/
      run.json            schema version, name, when and with what it was made
      recipe.toml         the settings, resolved
      status.json         what the run is doing; replaced whole
      metrics.jsonl       one object for each step
      evals.jsonl         one object for each evaluation, and evals/ the answers themselves
      trajectories.log    every batch that reached the learner
      weights/            numbered versions; checkpoints/ what a run goes on from
      logs/               one file for each part; ray.json, ray.token while it runs
      pause.json          somebody asks it to pause, and who; pause-machine.json: a condition of [power]
      machine.json        what its supervisor saw of the machine last
      report/             what `pippin report` made of it

One process writes: the holder of `lock`.
"""

import contextlib
import fcntl
import json
import os
import platform
import stat
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from runtime import failpoints
from runtime.durable import (
    PRIVATE_FILE,
    clear_leftovers,
    full_disk_explained,
    is_alive,
    sync,
    write_file,
)
from runtime.errors import BadInput
from runtime.home import PRIVATE
from runtime.ledger import Ledger

SCHEMA_VERSION = 1
PROBE_S = 0.2
NAMED_S = 2.0
"""How long a process that has just become the writer may take, on a busy machine, to write its id."""
CRC = b',"crc32":'
UNREADABLE = (ValueError, RecursionError)
"""What decoding raises: msgspec's errors and those of bytes that are no UTF-8 are ValueErrors."""
LONGEST_NAME = 100
"""Of a run: its folder, and names made from it, must fit into a file name of 255 bytes."""
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class EvalResult(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation of one weights version."""

    step: int
    task: str
    metric: str
    score: float | None
    """None if no answer could be scored."""
    n: int
    """Answers that were scored."""
    stderr: float
    """Standard error of the score."""
    mean_tokens: float
    truncated: float
    """Share of answers that reached the length limit."""
    failed: int = 0
    """Answers that could not be scored; they are not in `n`."""


class PauseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asks a run to pause: the content of pause.json."""

    by: str
    """"user", "signal", or "machine" for a condition of [power], which is withdrawn by itself."""
    reason: str
    end: bool = False
    """Its process is to end as well; otherwise it waits until the request is withdrawn."""


class Machine(msgspec.Struct, kw_only=True):
    """What the supervisor saw last: the content of machine.json."""

    memory_bytes: int = 0
    """Resident memory of all the run's processes."""
    free_disk_bytes: int = 0
    on_battery: bool | None = None
    thermal_pressure: str | None = None
    duty_cycle: float = 1.0


class Status(msgspec.Struct, kw_only=True):
    """What a run is doing: the content of status.json."""

    name: str
    state: str = "starting"
    """starting, running, pausing, paused, stopped, finished or failed; `read_status` adds "died"."""
    doing: str = ""
    since: float = 0.0
    """Unix time of the last change of `doing`."""
    step: int = 0
    steps: int = 0
    message: str = ""
    """Why it failed: the first cause."""
    evals: list[EvalResult] = []
    ledger: dict[str, Any] = msgspec.field(default_factory=lambda: Ledger().as_dict())
    weights_digest: str = ""
    optimizer_digest: str = ""
    trajectories_digest: str = ""
    metrics: dict[str, float] = {}
    pids: dict[str, int] = {}
    dashboard: str = ""
    seconds: float = 0.0
    """Wall-clock of the run so far, without the time it was not running."""
    eta_s: float | None = None
    machine: Machine = msgspec.field(default_factory=Machine)
    alive: bool = False
    """Its supervisor's process is there, be it to wait; known when read."""

    def of_metric(self, metric: str) -> list[EvalResult]:
        """Evaluations by a metric, oldest first."""
        return [result for result in self.evals if result.metric == metric]


PASS_AT_1 = "pass@1"
PASS_AT_1_SAMPLED = "pass@1 at temperature 1"

ALIVE = ("starting", "running", "pausing")
"""States that need a process."""


class RunDirectory:
    """Paths of a run, and the few files that are replaced whole."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.path = root / name
        self._pauses = (str(self.path / "pause.json"), str(self.path / "pause-machine.json"))
        """A person's request and the machine's: two files, so that neither overwrites the other."""
        self._lock: tuple[int, int] | None = None
        """Descriptors of the folder and of the file `lock`. The folder's counts: no `rm` takes it away
        from under its holder. The file says which process that is, and an earlier version looks there."""

    @property
    def weights(self) -> Path:
        """Numbered weights versions."""
        return self.path / "weights"

    @property
    def checkpoints(self) -> Path:
        """Published checkpoints."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """One log file for each part."""
        return self.path / "logs"

    @property
    def trajectories(self) -> Path:
        """The trajectory log."""
        return self.path / "trajectories.log"

    @property
    def recipe(self) -> Path:
        """The resolved settings."""
        return self.path / "recipe.toml"

    def create(self, recipe: str, about: dict[str, Any]) -> None:
        """Claim the name and write what does not change. Raises BadInput for a name that is taken,
        not a plain file name, or a root that cannot be written.
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
        """What was written down when the run was made."""
        return json.loads((self.path / "run.json").read_bytes())

    def lock(self) -> None:
        """Become the run's one writer until this process ends. Raises BadInput if another is."""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not (_locked_within(folder, PROBE_S) and _locked_within(file, PROBE_S)):
            os.close(file)
            os.close(folder)
            raise BadInput(f"{self.path}: another process is running it (pid {self._named()})")
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        self._lock = folder, file
        for folder in (self.path, self.path / "evals"):
            clear_leftovers(folder)
        try:
            self._stored_status()
        except (
            BadInput
        ):  # it is not synced, so a power cut may leave anything; nothing in it is needed
            os.replace(self.path / "status.json", self.path / "status.json.damaged")

    def locked(self) -> bool:
        """Somebody is this run's writer now."""
        if self._lock is not None:
            return True
        return any(_is_locked(path) for path in (self.path, self.path / "lock"))

    def holder(self) -> int | None:
        """Returns the process that is this run's writer, or was its last; None if nobody knows."""
        try:
            return int((self.path / "lock").read_text())
        except (OSError, ValueError):
            return None

    def _named(self) -> int | str:
        """Returns the holder once it has written who it is: what is there before is a dead one's."""
        until = time.monotonic() + NAMED_S
        while (pid := self.holder()) is None or not is_alive(pid):
            if time.monotonic() > until:
                return "?"
            time.sleep(0.01)
        return pid

    def unlock(self) -> None:
        """Let another process be the writer."""
        for descriptor in self._lock or ():
            os.close(descriptor)
        self._lock = None

    def ask_to_pause(self, request: PauseRequest) -> None:
        """Leave a request for whoever runs it: durable, and no connection is needed."""
        path = Path(self._pauses[request.by == "machine"])
        write_file(path, msgspec.json.encode(request))

    def pause_asked(self) -> bool:
        """Somebody asks. Cheap enough for every token."""
        return any(map(os.path.exists, self._pauses))

    def pause_request(self) -> PauseRequest | None:
        """Who asks, and why; a person before the machine. What cannot be read is a user's: it was meant."""
        for path in self._pauses:
            try:
                return msgspec.json.decode(Path(path).read_bytes(), type=PauseRequest)
            except FileNotFoundError:
                continue
            except (OSError, *UNREADABLE):
                return PauseRequest(by="user", reason="asked to")
        return None

    def withdraw_pause(self, *, of_machine: bool = False) -> None:
        """Let it go on; a person's request stays if only the machine's is withdrawn."""
        for path in self._pauses[of_machine:]:
            Path(path).unlink(missing_ok=True)
        sync(self.path)

    def write_machine(self, machine: Machine) -> None:
        """Replace machine.json."""
        write_file(self.path / "machine.json", msgspec.json.encode(machine), durable=False)

    def write_status(self, status: Status) -> None:
        """Replace status.json."""
        write_file(self.path / "status.json", msgspec.json.encode(status), durable=False)

    def read_status(self) -> Status:
        """The last status; a run whose writer is gone without a word has `state` "died"."""
        self.require()
        alive = self.locked()
        status = self._stored_status()
        with contextlib.suppress(OSError, *UNREADABLE):
            seen = (self.path / "machine.json").read_bytes()
            status.machine = msgspec.json.decode(seen, type=Machine)
        status.alive = alive
        if status.state in ALIVE and not alive:
            status.state = "died"
            status.message = status.message or "its process is gone; see the logs"
        return status

    def _stored_status(self) -> Status:
        path = self.path / "status.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Status)
        except FileNotFoundError:
            return Status(name=self.name)
        except UNREADABLE as error:
            raise BadInput(f"{path}: is damaged: {error}") from None

    def settle(self, state: str, message: str = "") -> None:
        """Write down how it ended, or that it waits, for a conductor that is gone."""
        status = self.read_status()
        if status.state not in (state, "failed"):
            status.state, status.doing, status.since, status.pids = state, "", time.time(), {}
        status.message = message or status.message
        self.write_status(status)

    def append_line(self, file: str, record: Any) -> None:
        """Append one JSON object to a .jsonl file of the run."""
        path, line = self.path / file, _checked_line(file, record)
        with full_disk_explained(path, len(line)):
            failpoints.hit("disk.write")
            path.touch(PRIVATE_FILE)
            with path.open("ab") as out:
                out.write(line)

    def read_lines(self, file: str) -> list[dict[str, Any]]:
        """The objects of a .jsonl file; a torn or damaged line is left out."""
        path = self.path / file
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        return [record for line in lines if (record := _record(file, line)) is not None]

    def keep_lines(
        self, file: str, last_step: int, needed: Iterable[tuple[int, str | None]] = ()
    ) -> str:
        """Drop the objects of later steps: those steps are done anew.

        Gives a sentence if some of the `needed` (step and metric, if it names one) have no undamaged
        line.
        """
        lines = [line for line in self.read_lines(file) if line["step"] <= last_step]
        once = {(line["step"], line.get("metric")): line for line in lines}
        content = b"".join(_checked_line(file, line) for line in once.values())
        write_file(self.path / file, content)
        missing = [str(step) for step, metric in needed if (step, metric) not in once]
        if not missing:
            return ""
        return f"{self.path / file}: damaged, it has lost step {', '.join(missing[:5])}" + (
            f" and {len(missing) - 5} others" if len(missing) > 5 else ""
        )


def _checked_line(file: str, record: Any) -> bytes:
    """One line of a .jsonl file. Its last key is the CRC-32 of the file's name and what is before."""
    line = msgspec.json.encode(record)[:-1]
    return b"%b%b%d}\n" % (line, CRC, zlib.crc32(line, zlib.crc32(file.encode())))


def _record(file: str, line: bytes) -> dict[str, Any] | None:
    """The object of a line, None for one that is torn, damaged, or of another file."""
    start, _, crc = line.rpartition(CRC)
    try:
        whole = int(crc[:-1]) == zlib.crc32(start, zlib.crc32(file.encode()))
        return msgspec.json.decode(start + b"}", type=dict[str, Any]) if whole else None
    except UNREADABLE:
        return None


def _is_locked(path: Path) -> bool:
    """Whether another process holds a lock on a file or folder, if it is there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:  # shared: two who look at once do not take each other for the writer
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:  # a network volume that locks no folders has a lock on the file
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)


def _locked_within(descriptor: int, seconds: float) -> bool:
    """Try for so long: whoever looks whether a run is locked holds its lock for an instant."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        except OSError:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise
            return True  # a network volume locks no folders: the lock on the file must do


def plain_name(name: str) -> bool:
    """Whether a run can be called so: a file name that no shell and no option parser misreads."""
    fits = 0 < len(name) <= LONGEST_NAME
    return fits and set(name) <= NAME_CHARACTERS and not name.startswith((".", "-"))


def runs(root: Path) -> list[Path]:
    """The runs under a root, oldest first."""
    found = [p.parent for p in root.glob("*/run.json")] if root.is_dir() else []
    return sorted(found, key=lambda p: (p / "run.json").stat().st_mtime)


def free_name(root: Path, stem: str) -> str:
    """The first of stem-1, stem-2, … that is not taken."""
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"
