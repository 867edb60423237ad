"""On real Ray: records are read where they lie, parts may be killed, errors arrive as they were."""

import itertools
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.program import RayActorSystem, start_conductor
from runtime.errors import BadInput, Damaged, Interrupted, PippinError, RunFailed
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import Status
from runtime.trajectory import lists, to_batch
from tests.actors.tiny import digests, new_run, settings
from tests.runtime.test_trajectory import row

TOKEN_COLUMNS = ("tokens", "logprobs", "weights_version")
GENERATIONS = itertools.count(1)
"""Runs of one session need names that differ."""
ROWS, LENGTH = 64, 2048  # 128 KiB a column and more: small objects are sent inline and copied


class Producer:
    def batch(self):
        length = LENGTH
        rows = [
            row(
                sample=i, tokens=list(range(length)), sampled=[False, *[True] * (length - 1)],
                logprobs=[-0.5] * length, weights_version=[i] * length, prompt_tokens=1,
            )
            for i in range(ROWS)
        ]  # fmt: skip
        return to_batch(rows)


class Consumer:
    """Looks where the values lie that it was given."""

    def look(self, batch) -> dict:
        found = {}
        for column in TOKEN_COLUMNS:
            views = lists(batch, column)
            addresses = [view.__array_interface__["data"][0] for view in views]
            found[column] = {
                "mappings": {mapping_of(a) for a in addresses},
                "writeable": any(v.flags.writeable for v in views),
                "owned": any(v.flags.owndata for v in views),
                "sum": float(sum(v.sum(dtype=np.float64) for v in views)),
            }
        copy = views[0].copy()
        found["a copy"] = mapping_of(copy.__array_interface__["data"][0])
        return found


def mapping_of(address: int) -> str:
    """The name of the memory mapping that holds an address; "" for the heap and its like."""
    if platform.system() != "Linux":
        return "?"
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_ = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return line[73:].strip()
    return ""


def test_a_batch_is_read_in_the_object_store_without_a_copy(ray_session):
    ray = ray_session
    producer, consumer = (ray.remote(c).options(num_cpus=0).remote() for c in (Producer, Consumer))
    found = ray.get(consumer.look.remote(producer.batch.remote()), timeout=60)
    sums = {"tokens": ROWS * LENGTH * (LENGTH - 1) / 2, "logprobs": -0.5 * ROWS * LENGTH,
            "weights_version": LENGTH * ROWS * (ROWS - 1) / 2}  # fmt: skip
    for column in TOKEN_COLUMNS:
        assert found[column]["sum"] == sums[column]
        assert not found[column]["writeable"] and not found[column]["owned"]
        if platform.system() == "Linux":
            (mapping,) = found[column]["mappings"]
            assert "plasma" in mapping and "/dev/shm" in mapping
    if platform.system() == "Linux":
        assert "plasma" not in found["a copy"]


class Raiser:
    def __init__(self, at_once: str = "") -> None:
        if at_once:
            raise BadInput(at_once)

    def hello(self) -> None: ...

    def fail(self, which: int) -> None:
        raise (BadInput, RunFailed, Interrupted, Damaged, ZeroDivisionError)[which](
            "file.toml: line 3 needs a number, got 'x'"
        )


@pytest.mark.parametrize("which", range(4))
async def test_our_errors_arrive_as_the_same_class_with_the_same_sentence(
    ray_session, tmp_path, which
):
    system = RayActorSystem(settings(tmp_path), new_run(tmp_path), next(GENERATIONS))
    actor = ray_session.remote(Raiser).options(num_cpus=0).remote()
    with pytest.raises(PippinError) as caught:
        await system.wait(actor.fail.remote(which), 30, "a part")
    assert type(caught.value) is (BadInput, RunFailed, Interrupted, Damaged)[which]
    assert str(caught.value) == "file.toml: line 3 needs a number, got 'x'"


async def test_a_mistake_of_ours_is_one_sentence(ray_session, tmp_path):
    system = RayActorSystem(settings(tmp_path), new_run(tmp_path), next(GENERATIONS))
    actor = ray_session.remote(Raiser).options(num_cpus=0).remote()
    with pytest.raises(RunFailed) as caught:
        await system.wait(actor.fail.remote(4), 30, "sampler-0 to answer")
    assert str(caught.value) == (
        "an error while we waited for sampler-0 to answer: "
        "ZeroDivisionError: file.toml: line 3 needs a number, got 'x'"
    )


async def test_an_actor_that_refuses_to_start_says_why(ray_session, tmp_path):
    """It would refuse again: it is no death, and it is not tried again."""
    system = RayActorSystem(settings(tmp_path), new_run(tmp_path), next(GENERATIONS))
    actor = ray_session.remote(Raiser).options(num_cpus=0).remote("model: is missing")
    with pytest.raises(BadInput, match=r"^model: is missing$"):
        await system.wait(actor.hello.remote(), 30, "learner-0 to start")


@pytest.fixture
def wanted(tmp_path, ray_session):
    """A run that takes a few seconds, with all roles."""
    return settings(
        tmp_path, exact=True, algorithm__steps=25, eval={"prompts": 3, "every_steps": 10},
        actors={"samplers": 2, "verifiers": 2},
    )  # fmt: skip


@pytest.fixture
def small(tmp_path, ray_session):
    """As few processes as a run can have: each takes a second to start."""
    return settings(tmp_path, algorithm__steps=200, eval={"prompts": 0}, actors={})


def on_ray(ray, wanted, run: RunDirectory, killer=None) -> Status:
    run.lock()
    conductor = start_conductor(wanted, run, next(GENERATIONS))
    done = conductor.run.remote("")
    helper = threading.Thread(target=killer, daemon=True) if killer else None
    if helper:
        helper.start()
    try:
        ray.get(done, timeout=240)
    finally:
        run.unlock()
        ray.kill(conductor)
    if helper:
        helper.join(30)
    return run.read_status()


def exact_digests(wanted, folder: Path) -> list[str]:
    """Of the undisturbed run, in a process in exact mode."""
    code = (
        "import sys, msgspec; from runtime.blas import load_blas; load_blas(True)\n"
        "from pathlib import Path; from configs.schema import Settings\n"
        "from tests.actors.tiny import digests, go, new_run\n"
        "wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)\n"
        "print(*digests(go(wanted, new_run(Path(sys.argv[1]), 'undisturbed'))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], input=msgspec.json.encode(wanted),
        cwd=Path(__file__).parents[2], capture_output=True, timeout=240,
        env={**os.environ, "PIPPIN_EXACT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


@pytest.mark.soak
def test_a_run_whose_parts_are_killed_ends_as_the_undisturbed_one(ray_session, wanted, tmp_path):
    run = new_run(tmp_path)
    killed: list[tuple[str, int, int]] = []

    def kill() -> None:
        """Each role once, some steps apart."""
        for role, behind in (("sampler-0", 3), ("verifier-1", 8), ("learner-0", 13)):
            status = wait_for(run, behind)
            os.kill(status.pids[role], signal.SIGKILL)
            killed.append((role, status.pids[role], status.step))

    status = on_ray(ray_session, wanted, run, kill)
    assert [role for role, *_ in killed] == ["sampler-0", "verifier-1", "learner-0"]
    assert all(status.pids[role] != pid for role, pid, _ in killed), "nobody was replaced"
    assert (status.state, status.step) == ("finished", 25)
    assert status.ledger["in_flight"] == 0 and status.ledger["pulled"] == 25 * 12
    assert [e.step for e in status.evals] == [0, 10, 20, 25]
    assert digests(status) == exact_digests(wanted, tmp_path)


def wait_for(run: RunDirectory, step: int) -> Status:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        status = run.read_status()
        if status.step >= step and "learner-0" in status.pids:
            return status
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


@pytest.mark.soak
def test_a_run_can_be_paused_and_goes_on_as_if_it_had_not(ray_session, wanted, tmp_path):
    run = new_run(tmp_path)
    paused = 0
    for behind in (1, 4, 9):
        run.lock()
        conductor = start_conductor(wanted, run, next(GENERATIONS))
        done = conductor.run.remote("")
        wait_for(run, behind)
        run.ask_to_pause(PauseRequest(by="user", reason="a test"))
        with pytest.raises(Interrupted):
            ray_session.get(done, timeout=60)
        ray_session.kill(conductor)
        run.settle("paused")
        run.withdraw_pause()
        run.unlock()
        ledger = run.read_status().ledger
        assert ledger["pulled"] == ledger["trained"] + ledger["in_flight"] + sum(
            ledger["dropped"].values()
        )
        paused += 1
    status = on_ray(ray_session, wanted, run)
    assert (paused, status.state, status.step) == (3, "finished", 25)
    assert digests(status) == exact_digests(wanted, tmp_path)


def test_a_broken_recipe_ends_the_run_with_its_first_cause(ray_session, small, tmp_path):
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    run = new_run(tmp_path)
    with pytest.raises(BadInput):
        on_ray(ray_session, small, run)
    status = msgspec.json.decode((run.path / "status.json").read_bytes(), type=Status)
    assert status.state == "failed"
    assert status.message.endswith("model.safetensors: file ends early: needs 8 bytes, has 5")
