"""When the disk is full at a write, the run stops with one sentence, loses nothing, and goes on with room."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from policies import weights
from runtime import checkpoint, durable, failpoints
from runtime.durable import GO_ON, write_file
from runtime.errors import RunFailed
from runtime.trajectory_log import EMPTY_CHAIN, TrajectoryLog
from tests.runtime.test_trajectory import other, row, to_batch

ROOT = Path(__file__).parents[2]
SENTENCE = re.compile(
    r"/\S+: the disk is full \(\d+\.\d\d GB free\): free at least \d+\.\d\d GB, "
    rf"then go on: {GO_ON}"
)
STEPS = 3


class Run:
    """Writes what the learner writes in a step, in the same order."""

    def __init__(self, root: Path, size: int) -> None:
        self.root, self.checkpoints, self.size = root, root / "checkpoints", size
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def go_on(self, until: int) -> None:
        """Restarts from the newest checkpoint and does the steps that are missing."""
        found, passed_over = checkpoint.newest(self.checkpoints)
        assert passed_over == []
        log = TrajectoryLog(self.root / "log")
        try:
            state = found.state if found else {"log_size": 0, "log_chain": EMPTY_CHAIN}
            log.restore(state["log_size"], state["log_chain"])
            for step in range(found.step + 1 if found else 1, until + 1):
                self.step(log, step)
        finally:
            log.close()

    def step(self, log: TrajectoryLog, step: int) -> None:
        log.append(to_batch([row(step=step, text="x" * 3000), other(step=step)]))
        version = self.root / "weights.safetensors"
        digest = weights.save(version, {"w": mx.full((self.size,), step)})
        log.sync()

        def write(folder: Path) -> None:
            os.link(version, folder / version.name)
            weights.save(folder / "optimizer.safetensors", {"m": mx.full((self.size,), -step)})

        state = {"log_size": log.size, "log_chain": log.chain, "digest": digest}
        checkpoint.publish(self.checkpoints, step, state, write)
        checkpoint.retire(self.checkpoints, 2)
        write_file(self.root / "status.json", f'{{"step": {step}}}'.encode())

    def require_whole(self, least: int) -> None:
        """Checks that everything acknowledged is there, and no file that is not known."""
        found, passed_over = checkpoint.newest(self.checkpoints)
        assert passed_over == [] and (found.step if found else 0) >= least
        if found:
            weights.load(found.path / "weights.safetensors", found.state["digest"])
            log = TrajectoryLog(self.root / "log")
            log.restore(found.state["log_size"], found.state["log_chain"])
            log.close()
        status = self.root / "status.json"
        assert not status.exists() or status.read_bytes() in (
            f'{{"step": {step}}}'.encode() for step in range(STEPS + 1)
        )
        names = {path.name for path in (*self.root.iterdir(), *self.checkpoints.iterdir())}
        assert not [name for name in names if name.startswith(".")]


@pytest.fixture(autouse=True)
def disarmed(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(durable, "_flush", lambda descriptor: None)
    yield
    failpoints.disarm()


def test_the_disk_may_be_full_at_any_write(tmp_path):
    failpoints.arm()
    Run(tmp_path / "counted", 100).go_on(STEPS)
    writes = failpoints.reached["disk.write"]
    chain = checkpoint.read(tmp_path / "counted" / "checkpoints", STEPS).state["log_chain"]
    for nth in range(1, writes + 1):
        run = Run(tmp_path / str(nth), 100)
        failpoints.arm(failpoints.Plan(point="disk.write", nth=nth, action="full"))
        with pytest.raises(RunFailed) as caught:
            run.go_on(STEPS)
        assert SENTENCE.fullmatch(str(caught.value)), str(caught.value)
        failpoints.disarm()
        run.require_whole(least=max(0, (nth - 2) // ((writes - 1) // STEPS)))
        run.go_on(STEPS)
        assert checkpoint.read(run.checkpoints, STEPS).state["log_chain"] == chain
        shutil.rmtree(run.root)
    print(f"{writes} writes")
    assert writes > 20


def test_the_disk_may_be_full_at_every_write_and_then_not(tmp_path):
    """Meanwhile no checkpoint is acknowledged, and no half-written file is left."""
    run = Run(tmp_path / "run", 100)
    run.go_on(1)
    for _ in range(3):
        failpoints.arm(failpoints.Plan(point="disk.write", nth=0, action="full"))
        with pytest.raises(RunFailed):
            run.go_on(STEPS)
        failpoints.disarm()
        run.require_whole(least=1)
    run.go_on(STEPS)
    run.require_whole(least=STEPS)


def test_a_disk_that_is_really_full(tmp_path):
    """A small disk in memory gets other amounts of room, so that it is full at another write each time."""
    mount = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
    names = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*names, mount, str(tmp_path), "true"], capture_output=True).returncode
    ):
        pytest.skip("needs a user namespace to mount a small disk in (Linux)")
    done = subprocess.run(
        [*names, mount, str(tmp_path), sys.executable, "-m", "tests.runtime.test_disk_full", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) > 50 and all(map(SENTENCE.fullmatch, sentences))
    places = Counter(Path(sentence.partition(":")[0]).name for sentence in sentences)
    print(dict(places))
    assert set(places) >= {"log", "weights.safetensors", "optimizer.safetensors", "checkpoints"}


def fill(disk: Path) -> None:
    """Runs in a child process and prints each error. A step needs about 200 pages of memory, three 600."""
    for free in (*range(12), *range(20, 190, 30), *range(190, 220), *range(230, 600, 30)):
        run = Run(disk / "run", 100_000)
        there = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(there.f_bsize * (there.f_bavail - free)))
        try:
            run.go_on(STEPS)
        except RunFailed as error:
            print(error)
        run.require_whole(least=0)
        (disk / "ballast").unlink()
        run.go_on(STEPS)
        run.require_whole(least=STEPS)
        shutil.rmtree(run.root)


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
