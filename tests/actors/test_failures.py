"""What goes wrong is counted by kind, redone, or ends the run with its first cause."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest

from actors.failures import FailuresInARow
from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Hello
from actors.pause import Pause
from actors.pool import ActorPool, together
from actors.program import RayActorSystem
from actors.system import ActorDied, ActorStuck
from runtime.errors import RunFailed
from runtime.tasks.prompt import Verdict
from runtime.trajectory import to_rows
from runtime.trajectory_log import batches
from tests.actors.tiny import Death, go, mortal_actor_system, new_run, settings

SOMETIMES = """
import time
def reward(prompt, completion, row):
    print("judging", len(completion))
    if len(completion) % 3 == 0:
        {what}
    return float(len(completion))
"""
BAD = Verdict(reward=None, failure="raised", detail="bad")
KINDS = {
    "raise ValueError('no such word')": "raised",
    "time.sleep(60)": "timed_out",
    "return float('nan')": "not_a_number",
    "return 1e39": "out_of_range",
    "__import__('os')._exit(3)": "died",
}


@pytest.mark.parametrize("what", KINDS)
def test_a_reward_that_fails_is_counted_by_kind_and_is_no_zero(tmp_path, what):
    wanted = settings(
        tmp_path, reward=SOMETIMES.format(what=what), algorithm__steps=2, eval={"prompts": 0},
        verifier={"timeout_s": 0.3, "max_failures": 100}, sampling__max_new_tokens=3,
    )  # fmt: skip
    run = new_run(tmp_path)
    status = go(wanted, run)
    rows = [row for batch in batches(run.trajectories) for row in to_rows(batch)]
    failed = [row for row in rows if row.failure is not None]
    assert status.ledger["failed"] == {KINDS[what]: len(failed)} and failed
    assert {row.failure for row in failed} == {KINDS[what]}
    for row in failed:
        assert (row.reward, row.passed, row.advantage, row.dropped) == (None, None, None, None)
    assert all(row.reward is not None for row in rows if row.failure is None)
    ledger = status.ledger
    assert ledger["in_flight"] == 0
    assert ledger["trained"] == sum(r.failure is None and r.dropped is None for r in rows)
    logs = run.logs.glob("reward-*.log")
    printed = [line for log in logs for line in log.read_text().splitlines()]
    assert len(printed) == len(rows) and all(line.startswith("judging ") for line in printed)
    shares = [line["failed_share"] for line in run.read_lines("metrics.jsonl")]
    assert sum(shares) / 2 == pytest.approx(len(failed) / len(rows))


@pytest.mark.parametrize("limit", [5, 14], ids=["in one batch", "over two batches"])
def test_failures_in_a_row_stop_the_run_with_the_first_of_them(tmp_path, limit):
    broken = (
        "calls = []\n"
        "def reward(prompt, completion, row):\n"
        "    calls.append(1)\n"
        "    raise ValueError(f'cause number {len(calls)}')\n"
    )
    wanted = settings(tmp_path, reward=broken, verifier={"max_failures": limit},
                      eval={"prompts": 0}, actors={})  # fmt: skip
    run = new_run(tmp_path)
    with pytest.raises(RunFailed) as caught:
        go(wanted, run)
    sentence = str(caught.value)
    assert sentence.startswith(
        f"the reward failed {limit} times in a row (verifier.max_failures); the first: "
    )
    assert "raised: " in sentence and "cause number 1" in sentence and "\n" not in sentence
    assert (run.read_status().state, run.read_status().message) == ("failed", sentence)


def test_a_reward_that_can_be_had_ends_the_row_of_failures():
    failures, fine = FailuresInARow(3), Verdict(reward=0.0)
    for number, verdict in enumerate([fine, *[BAD] * 2, fine, *[BAD] * 2, fine]):
        failures.see(msgspec.structs.replace(verdict, detail=f"cause {number}"))
    failures.see(BAD)
    failures.see(BAD)
    with pytest.raises(RunFailed, match=r"failed 3 times in a row .* the first: raised: bad$"):
        failures.see(msgspec.structs.replace(BAD, detail="worse"))


def test_an_evaluation_without_any_score_says_so_and_the_run_goes_on(tmp_path):
    on_held_out = (
        "def reward(prompt, completion, row):\n"
        "    if int(prompt.split('+')[0]) >= 36: raise KeyError('held out')\n"
        "    return float(len(completion))\n"
    )
    run = new_run(tmp_path)
    status = go(settings(tmp_path, reward=on_held_out), run)
    assert status.state == "finished" and status.ledger["failed"] == {}
    assert [(e.score, e.n, e.failed) for e in status.evals] == [(None, 0, 3)] * 3


@pytest.mark.parametrize("role", ["sampler", "verifier", "learner", "evaluator"])
def test_too_many_deaths_end_the_run_and_name_the_part(tmp_path, monkeypatch, role):
    monkeypatch.setattr("actors.pool.BACKOFF_S", 0.001)
    method = {"sampler": "generate", "verifier": "score", "learner": "learn",
              "evaluator": "prompts"}[role]  # fmt: skip
    wanted = settings(tmp_path, actors={"restarts": 2})
    run = new_run(tmp_path)
    deaths = [Death(role, method, nth) for nth in (1, 2, 3, 4)]
    with pytest.raises(
        RunFailed, match=rf"^{role}-0 {role} died .*; 3 tries without a step"
    ) as caught:
        go(wanted, run, mortal_actor_system(wanted, run, deaths))
    assert f"died in call 1 of {method}" in str(caught.value), "not the first cause"
    assert f'{role}-0.log: {{"actor"' in str(caught.value), "not the end of its log"
    assert run.read_status().state == "failed"


def test_deaths_between_steps_that_worked_do_not_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr("actors.pool.BACKOFF_S", 0.001)
    wanted = settings(tmp_path, actors={"restarts": 1}, eval={"prompts": 0})
    run = new_run(tmp_path)
    deaths = [Death("verifier", "score", nth) for nth in (1, 3, 5, 7)]
    assert go(wanted, run, mortal_actor_system(wanted, run, deaths)).state == "finished"
    assert all(death.calls >= death.nth for death in deaths)


def test_an_actor_that_dies_as_it_starts_is_started_again(tmp_path):
    wanted = settings(tmp_path, algorithm__steps=1)
    run = new_run(tmp_path)
    deaths = [Death(role, "hello") for role in ("learner", "sampler", "evaluator")]
    assert go(wanted, run, mortal_actor_system(wanted, run, deaths)).state == "finished"


SAMPLER = ActorId("sampler", 0)
NOBODY = 2**22 + 1
"""No process has this number."""


class AsyncActorSystem:
    """Actors that take a while to start and to answer, and die on command, with all their calls."""

    def __init__(self) -> None:
        self.started = 0
        self.handles: dict[ActorId, Any] = {}

    def start(self, actor: ActorId) -> Any:
        self.started += 1
        if actor in self.handles:
            self.handles[actor].die()
        self.handles[actor] = AsyncActor()
        return self.handles[actor]

    def actor(self, actor: ActorId) -> Any:
        return self.handles[actor]

    async def wait(self, reference: Any, timeout_s: float, what: str) -> Any:
        try:
            return await asyncio.wait_for(asyncio.shield(reference), timeout_s)
        except TimeoutError:
            raise ActorStuck(f"waited {timeout_s:g} s for {what}") from None

    def stop(self) -> None: ...


class AsyncActor:
    def __init__(self) -> None:
        self.dead = asyncio.Event()
        self.begins = time.monotonic() + 0.3

    def die(self) -> None:
        self.dead.set()

    def __getattr__(self, name: str) -> Any:
        actor = self

        class Method:
            def remote(self, *arguments: Any) -> Any:
                return asyncio.ensure_future(actor.answer(name, *arguments))

        return Method()

    async def answer(self, name: str, *arguments: Any) -> Any:
        await asyncio.sleep(max(self.begins - time.monotonic(), 0))
        if name == "hello":
            if self.dead.is_set():
                raise ActorDied("killed as it started")
            return Hello(pid=NOBODY, backend="", seconds=0.0)
        work = asyncio.ensure_future(asyncio.sleep(arguments[0]))
        death = asyncio.ensure_future(self.dead.wait())
        await asyncio.wait([work, death], return_when=asyncio.FIRST_COMPLETED)
        if self.dead.is_set():
            raise ActorDied("killed")
        return "answer"


def pool_of(wanted, system, folder) -> ActorPool:
    pause = Pause(new_run(folder))
    return ActorPool(wanted, system, pause, folder, open_log(folder, "conductor"))


def answer(pool: ActorPool, seconds: float, what: str = "an answer") -> Awaitable[Any]:
    return pool.sampler(0).value(lambda actor: actor.generate.remote(seconds), what)


async def test_calls_that_share_a_dead_actor_restart_it_once(tmp_path):
    system = AsyncActorSystem()
    actors = pool_of(settings(tmp_path, actors={"restarts": 1}), system, tmp_path)
    system.start(SAMPLER)

    async def kill() -> None:
        await asyncio.sleep(0.4)
        system.actor(SAMPLER).die()

    calls = [answer(actors, 0.5) for _ in range(5)]
    *answers, _ = await together([*calls, kill()])
    assert answers == ["answer"] * 5
    assert system.started == 2


async def test_a_deadline_names_what_is_awaited_after_one_more_try(tmp_path):
    system = AsyncActorSystem()
    wanted = settings(tmp_path, deadlines={"generate_s": 0.4})
    actors = pool_of(wanted, system, tmp_path)
    system.start(SAMPLER)
    with pytest.raises(RunFailed, match=r"^waited 0\.4 s for sampler-0 to answer step 3; 2 tries"):
        await answer(actors, 9, "sampler-0 to answer step 3")
    assert system.started == 2
    hasty = pool_of(settings(tmp_path, deadlines={"start_s": 0.1}), system, tmp_path)
    with pytest.raises(RunFailed, match=r"^waited 0\.1 s for \w+-\d to start; 2 tries"):
        await hasty.start()


async def test_a_part_that_is_stuck_once_is_replaced(tmp_path):
    system = AsyncActorSystem()
    actors = pool_of(settings(tmp_path, deadlines={"generate_s": 0.5}), system, tmp_path)
    system.start(SAMPLER)
    durations = iter([9.0, 0.0])

    class Once(AsyncActor):
        async def answer(self, name: str, *arguments: Any) -> Any:
            return await super().answer(name, *(next(durations) for _ in arguments))

    system.handles[SAMPLER] = Once()
    assert await answer(actors, 0.0) == "answer"
    assert system.started == 2


async def test_the_fleet_on_ray_has_the_same_deadline(tmp_path):
    system = RayActorSystem(settings(tmp_path), new_run(tmp_path), 0)
    never = asyncio.get_running_loop().create_future()
    with pytest.raises(ActorStuck, match=r"^waited 0\.05 s for verifier-1 to score step 7$"):
        await system.wait(never, 0.05, "verifier-1 to score step 7")


async def test_the_first_failure_of_many_ends_the_others():
    ended = []

    async def slow(i: int) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(i)

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise RunFailed("first")

    with pytest.raises(RunFailed, match="first"):
        await together([slow(0), fails(), slow(1)])
    assert ended == [0, 1]
