"""A power cut at any point loses no acknowledged checkpoint. With a mistake in the protocol it would: each
mistake below is noticed, which shows that the states are the right ones to try.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime import checkpoint, durable, failpoints, journal
from runtime.checkpoint import Checkpoint
from runtime.errors import PippinError
from runtime.trajectory_log import EMPTY_CHAIN, TrajectoryLog
from tests.runtime.crash_states import Mark, Recorder, State, crash_states, materialise
from tests.runtime.test_trajectory import other, row, to_batch

QUIET = ("weights/", "checkpoints/.")
"""Recovery does not read these: it publishes weights anew and deletes hidden folders."""
Identity = tuple[int, int]


class Published(NamedTuple):
    """What a published checkpoint holds: its files, and the log up to it."""

    files: dict[str, bytes]
    log: bytes


class Trace(NamedTuple):
    """A recorded run."""

    recorder: Recorder
    published: dict[Identity, list[Published]]
    """By step and revision; several for one only if the protocol replaces a published checkpoint."""


class Run:
    """Writes to the disk what the learner writes, in the same order, with a few bytes for weights."""

    def __init__(self, root: Path, recorder: Recorder) -> None:
        self.root, self.checkpoints, self.weights = root, root / "checkpoints", root / "weights"
        self.recorder = recorder
        self.log = TrajectoryLog(root / "trajectories.log")
        self.published: dict[Identity, list[Published]] = {}
        self.log.restore(0, EMPTY_CHAIN)

    def publish_weights(self, version: int, text: str) -> None:
        aside = self.weights / ".aside"
        aside.write_bytes(text.encode() * 20)
        os.replace(aside, self.weights / f"v{version}")

    def step(self, step: int, text: str) -> None:
        self.log.append(to_batch([row(step=step), other(step=step, text=text)]))
        self.publish_weights(step, text)
        self.log.sync()
        self.checkpoint(step, text)

    def checkpoint(self, step: int, text: str) -> None:
        def write(folder: Path) -> None:
            for version in (step, step - 1):
                if (self.weights / f"v{version}").exists():
                    os.link(self.weights / f"v{version}", folder / f"v{version}")
            (folder / "optimizer").write_bytes(f"moments of {text}".encode())

        state = {"log_size": self.log.size, "log_chain": self.log.chain}
        made = checkpoint.publish(self.checkpoints, step, state, write)
        self.acknowledge(made)
        checkpoint.retire(self.checkpoints, 2)
        (self.weights / f"v{step - 2}").unlink(missing_ok=True)

    def acknowledge(self, made: Checkpoint) -> None:
        files = {file.name: file.read_bytes() for file in made.path.iterdir()}
        log = (self.root / "trajectories.log").read_bytes()
        self.published.setdefault((made.step, made.revision), []).append(Published(files, log))
        self.recorder.mark((made.step, made.revision))

    def go_back(self, step: int, text: str) -> None:
        """Restarts from a checkpoint, as the learner does; here it is not the newest one."""
        found = checkpoint.read(self.checkpoints, step)
        self.recorder.mark((found.step, found.revision))
        checkpoint.set_aside(self.checkpoints, found.step, found.revision)
        self.log.restore(found.state["log_size"], found.state["log_chain"])
        self.publish_weights(step, text)


def record(root: Path) -> Trace:
    """Records three steps, the second published twice; then going back to it and doing the third anew."""
    for folder in ("checkpoints", "weights"):
        (root / folder).mkdir(parents=True)
    recorder = Recorder(root)
    with recorder.recording():
        run = Run(root, recorder)
        run.step(1, "one")
        run.step(2, "two")
        run.checkpoint(2, "two again")
        run.step(3, "three")
        run.go_back(2, "two")
        run.step(3, "three anew")
        run.log.close()
    return Trace(recorder, run.published)


class Broken(AssertionError):
    """Recovery from a state loses something that was acknowledged."""


def check(state: State, least: Identity | None, trace: Trace, root: Path) -> None:
    """Recovers from a state as a restart does. Raises Broken if something acknowledged is lost."""
    materialise(state, root)
    found, passed_over = checkpoint.newest(root / "checkpoints")
    if passed_over:
        raise Broken(f"published, and damaged: {passed_over}")
    for identity in checkpoint._published(root / "checkpoints"):  # an older one may be needed
        checkpoint._verified(root / "checkpoints", identity)
    size, chain, files = 0, EMPTY_CHAIN, {}
    acceptable = [Published({}, b"")]
    if found is not None:
        size, chain = found.state["log_size"], found.state["log_chain"]
        files = {file.name: file.read_bytes() for file in found.path.iterdir()}
        acceptable = trace.published[found.step, found.revision]
    if least and (found is None or (found.step, found.revision) < least):
        raise Broken(f"{least} was acknowledged, the newest is {found and found.path.name}")
    log = TrajectoryLog(root / "trajectories.log")
    log.restore(size, chain)
    if Published(files, (root / "trajectories.log").read_bytes()) not in acceptable:
        raise Broken("the checkpoint or the log holds something else")
    log.append(to_batch([row(step=9)]))
    log.close()
    again = checkpoint.publish(root / "checkpoints", 9, {}, lambda _: None)
    if checkpoint.newest(root / "checkpoints")[0] != again:
        raise Broken("the next checkpoint is not found")


def explore(trace: Trace, root: Path) -> tuple[int, int]:
    """Checks every state. Returns how many there were, and how many different ones."""
    acknowledged: list[Identity | None] = [None]
    for op in trace.recorder.ops:
        acknowledged.append(op.what if isinstance(op, Mark) else acknowledged[-1])
    total, seen = 0, set()
    for done, state in crash_states(trace.recorder, QUIET):
        total += 1
        key = hash((acknowledged[done], frozenset(state.items())))
        if key in seen:
            continue
        seen.add(key)
        root.mkdir()
        try:
            check(state, acknowledged[done], trace, root)
        except (PippinError, Broken, OSError, KeyError) as error:
            raise Broken(f"after {done} operations: {error}") from error
        finally:
            shutil.rmtree(root)
    return total, len(seen)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Iterator[Path]:
    """Returns a folder in memory where there is one, and makes syncs return at once."""
    monkeypatch.setattr(durable, "_flush", lambda descriptor: None)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def test_no_power_cut_loses_what_was_acknowledged(root):
    trace = record(root / "run")
    total, different = explore(trace, root / "state")
    print(f"{len(trace.recorder.ops)} operations, {total} states, {different} of them different")
    assert sorted(trace.published) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert total > 5000 and different > 500


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────


def no_data_sync(patch):
    patch.setattr(checkpoint, "sync_folder", durable.sync)


def no_manifest_sync(patch):
    def all_but_the_manifest(folder):
        for file in folder.iterdir():
            if file.name != checkpoint.MANIFEST:
                durable.sync(file)
        durable.sync(folder)

    patch.setattr(checkpoint, "sync_folder", all_but_the_manifest)


def no_sync_of_the_folder_aside(patch):
    def files_only(folder):
        for file in folder.iterdir():
            durable.sync(file)

    patch.setattr(checkpoint, "sync_folder", files_only)


def no_sync_of_the_parent(patch):
    patch.setattr(checkpoint, "sync", lambda path: None)


def renamed_before_it_is_synced(patch):
    patch.setattr(checkpoint, "sync_folder", lambda folder: None)

    def late(root):
        for folder in root.glob("step-*"):
            durable.sync_folder(folder)
        durable.sync(root)

    patch.setattr(checkpoint, "sync", late)


def acknowledged_before_the_rename(patch):
    real = Run.checkpoint

    def early(self, step, text):
        made = (step, 1 + max((r for s, r in self.published if s == step), default=-1))
        plan = failpoints.Plan("checkpoint.before_rename", 0, lambda: self.recorder.mark(made))
        assert failpoints._plans is not None
        failpoints._plans.append(plan)
        real(self, step, text)
        failpoints._plans.remove(plan)

    patch.setattr(Run, "checkpoint", early)


def deleted_in_place(patch):
    patch.setattr(checkpoint, "rename_away", lambda folder: folder)


def deleted_before_the_rename_away_is_synced(patch):
    def unsynced(folder):
        trash = folder.with_name(f".trash-{folder.name}")
        os.rename(folder, trash)
        return trash

    patch.setattr(checkpoint, "rename_away", unsynced)


def a_step_is_replaced_by_retiring_it_first(patch):
    real = checkpoint.publish

    def replacing(root, step, *rest):
        for folder in root.glob(f"step-{step:06d}*"):
            durable.retire_folder(folder)
        return real(root, step, *rest)

    patch.setattr(checkpoint, "publish", replacing)


def the_log_is_not_synced(patch):
    patch.setattr(TrajectoryLog, "sync", lambda self: None)


def the_log_is_synced_behind_the_checkpoint(patch):
    real_sync, real_acknowledge = TrajectoryLog.sync, Run.acknowledge
    patch.setattr(TrajectoryLog, "sync", lambda self: None)

    def acknowledge(self, made):
        real_acknowledge(self, made)
        real_sync(self.log)

    patch.setattr(Run, "acknowledge", acknowledge)


def the_log_s_name_is_not_synced(patch):
    patch.setattr(journal, "sync", lambda path: path.is_dir() or durable.sync(path))


def later_checkpoints_are_not_set_aside(patch):
    patch.setattr(checkpoint, "set_aside", lambda *_: None)


def later_checkpoints_are_set_aside_without_a_sync(patch):
    def unsynced(root, step, revision):
        for folder in root.glob("step-*"):
            if folder.name > checkpoint._name(step, revision):
                folder.rename(folder.with_name("damaged-" + folder.name))

    patch.setattr(checkpoint, "set_aside", unsynced)


def weights_are_written_over(patch):
    def in_place(self, version, text):
        (self.weights / f"v{version}").write_bytes(text.encode() * 20)

    patch.setattr(Run, "publish_weights", in_place)


MISTAKES: list[Callable[[pytest.MonkeyPatch], None]] = [
    no_data_sync,
    no_sync_of_the_parent,
    acknowledged_before_the_rename,
    deleted_in_place,
    a_step_is_replaced_by_retiring_it_first,
    the_log_is_not_synced,
    later_checkpoints_are_not_set_aside,
    weights_are_written_over,
]
VARIANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    no_manifest_sync,
    no_sync_of_the_folder_aside,
    renamed_before_it_is_synced,
    deleted_before_the_rename_away_is_synced,
    the_log_is_synced_behind_the_checkpoint,
    the_log_s_name_is_not_synced,
    later_checkpoints_are_set_aside_without_a_sync,
]
"""Each is another way to make one of MISTAKES."""


@pytest.mark.parametrize(
    "mistake",
    [*MISTAKES, *(pytest.param(mistake, marks=pytest.mark.soak) for mistake in VARIANTS)],
    ids=lambda mistake: mistake.__name__,
)
def test_a_protocol_with_a_mistake_loses_something(root, mistake):
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        trace = record(root / "run")
    with pytest.raises(Broken) as caught:
        explore(trace, root / "state")
    print(f"{mistake.__name__}: {str(caught.value).rpartition('state/')[2]}")
