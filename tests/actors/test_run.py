"""A whole run in this process: what it says, what it counts, what it leaves on disk."""

import asyncio
import json

import pytest

from actors.conductor import Conductor
from actors.handles import ActorId
from actors.program import local_actor_system
from configs.schema import Settings
from policies.weights import load
from runtime import checkpoint
from runtime.errors import RunFailed
from runtime.metrics import METRICS
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import Status
from runtime.trajectory import StopReason, to_rows
from runtime.trajectory_log import EMPTY_CHAIN, batches, extend
from tests.actors.tiny import COARSE, go, new_run, settings

LEARNER = ActorId("learner")
Done = tuple[Settings, RunDirectory, Status]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    """Four steps, of which a checkpoint is kept for the last two and for the best."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPPIN_HOME", str(folder / "home"))
        wanted = settings(folder, reward=COARSE, checkpoint={"keep": 2})
        run = new_run(folder)
        return wanted, run, go(wanted, run)


def test_it_ends_finished(done: Done):
    _, run, status = done
    assert (status.state, status.step, status.steps) == ("finished", 4, 4)
    assert status.message == "" and not run.locked()
    assert all(len(digest) == 64 for digest in
               (status.weights_digest, status.optimizer_digest, status.trajectories_digest))  # fmt: skip
    assert status.seconds > 0 and status.eta_s == 0
    assert set(status.pids) == {
        "conductor", "learner-0", "sampler-0", "sampler-1", "verifier-0", "verifier-1",
        "evaluator-0",
    }  # fmt: skip


def test_the_ledger_is_what_the_trajectory_log_holds(done: Done):
    _, run, status = done
    rows = [row for batch in batches(run.trajectories) for row in to_rows(batch)]
    ledger = status.ledger
    assert ledger["pulled"] == len(rows) == 4 * 3 * 4
    assert ledger["trained"] == sum(row.dropped is None for row in rows)
    assert ledger["dropped"] == {"zero_variance": sum(row.dropped is not None for row in rows)}
    assert ledger["failed"] == {} and ledger["in_flight"] == 0
    assert 0 < ledger["trained"] < ledger["pulled"]


def test_every_prompt_of_the_stream_is_asked_once(done: Done):
    _, run, _ = done
    asked = [
        (r.step, r.prompt_index, r.sample) for b in batches(run.trajectories) for r in to_rows(b)
    ]
    assert asked == [
        (step, prompt, sample)
        for step in (1, 2, 3, 4)
        for prompt in range(3 * (step - 1), 3 * step)
        for sample in range(4)
    ]


def test_records_are_token_preserving(done: Done):
    _, run, _ = done
    for batch in batches(run.trajectories):
        assert set(batch.schema.metadata) == {
            b"pippin.schema",
            b"pippin.tokenizer",
            b"pippin.weights",
        }
        for row in to_rows(batch):
            completion = len(row.tokens) - row.prompt_tokens
            assert row.sampled == [False] * row.prompt_tokens + [True] * completion
            assert all(p < 0 for p in row.logprobs[row.prompt_tokens :])
            assert set(row.weights_version[row.prompt_tokens :]) == {row.step - 1}
            assert (row.stop_reason == StopReason.STOP) == (row.tokens[-1] == 2)
            assert (row.stop_reason == StopReason.LENGTH) == (
                completion == 6 and row.tokens[-1] != 2
            )
            assert row.reward is not None and row.advantage is not None


def test_the_digest_of_the_trajectories_is_that_of_the_log(done: Done):
    _, run, status = done
    chain = EMPTY_CHAIN
    for batch in batches(run.trajectories):
        chain = extend(chain, batch)
    assert chain == status.trajectories_digest


def test_metrics_have_documented_names_only(done: Done):
    _, run, status = done
    lines = run.read_lines("metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line.keys() - {"step"} <= METRICS.keys()
        assert all(isinstance(value, int | float) for value in line.values())
    said = set().union(*lines) | {"eval_pass_at_1"}
    of_evolution = {"fitness_std", "fitness_best", "members_left_out", "flat_generations",
                    "results_ignored", "update_norm", "noise_norm", "drift_norm"}  # fmt: skip
    of_distillation = {"cross_entropy", "divergence", "unusable_tokens", "student_share",
                       "one_token_answers"} | {n for n in METRICS if n.startswith("teacher_")}  # fmt: skip
    of_preference = {"preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward",
                     "eval_preference_accuracy", "eval_reward_margin"}  # fmt: skip
    of_terms = {"kl_loss", "cross_entropy_loss", "divergence_loss", "preference_loss",
                "corrected_share"}  # fmt: skip
    others = {"kl_reference", *of_terms, *of_evolution, *of_distillation, *of_preference}
    assert METRICS.keys() - said <= others
    assert status.metrics == {k: v for k, v in lines[-1].items() if k != "step"}


def test_evaluations_begin_with_the_base(done: Done):
    _, run, status = done
    assert [e.step for e in status.evals] == [0, 2, 4]
    assert all((e.task, e.metric, e.n, e.failed) == ("jsonl", "pass@1", 3, 0) for e in status.evals)
    assert [line["step"] for line in run.read_lines("evals.jsonl")] == [0, 2, 4]
    for result in status.evals:
        lines = (run.path / "evals" / f"step-{result.step:06d}.jsonl").read_text().splitlines()
        answers = [json.loads(line) for line in lines]
        assert sum(a["verdict"]["passed"] for a in answers) / 3 == pytest.approx(result.score)


def test_the_last_checkpoint_holds_the_weights_of_the_status(done: Done):
    _, run, status = done
    kept = sorted(p.name for p in run.checkpoints.iterdir())
    assert kept[-2:] == ["step-000003", "step-000004"] and len(kept) <= 3
    newest = run.checkpoints / "step-000004"
    load(newest / "weights.safetensors", status.weights_digest)
    load(newest / "optimizer.safetensors", status.optimizer_digest)
    assert [p.name for p in run.weights.iterdir()] == ["v000004.safetensors"]


def test_starting_a_finished_run_again_changes_nothing(done: Done):
    wanted, run, status = done
    again = go(wanted, run)
    for name in ("state", "step", "evals", "ledger", "weights_digest", "optimizer_digest",
                 "trajectories_digest"):  # fmt: skip
        assert getattr(again, name) == getattr(status, name)


def test_a_run_of_all_equal_rewards_leaves_the_weights_as_they_were(tmp_path):
    zero = "def reward(prompt, completion, row):\n    return 0.5\n"
    for name, keep in (("dropped", True), ("kept", False)):
        wanted = settings(
            tmp_path, reward=zero, algorithm__drop_zero_variance=keep, eval={"prompts": 0}
        )
        run = new_run(tmp_path, name)
        system = local_actor_system(wanted, run)
        system.start(LEARNER)
        base = system.actor(LEARNER).restore.remote().value().weights.digest
        status = go(wanted, run, system)
        assert status.state == "finished" and status.weights_digest == base
        assert status.ledger["dropped"] == ({"zero_variance": 48} if keep else {})


def test_a_learner_takes_steps_in_order_only(done: Done, tmp_path):
    from actors.messages import Learn, RunState

    wanted = settings(tmp_path)
    system = local_actor_system(wanted, new_run(tmp_path))
    system.start(LEARNER)
    system.actor(LEARNER).restore.remote().value()
    request = Learn(step=2, settled=[], state=RunState(), checkpoint=False, keep=[])
    with pytest.raises(RunFailed, match="stands at step 0, was asked for 2"):
        system.actor(LEARNER).learn.remote(request).value()
    system.stop()


def test_a_learner_refuses_tokens_older_than_the_run_allows(done: Done, tmp_path):
    from actors.learner import Learner

    _, run, _ = done
    learner = Learner(settings(tmp_path), str(new_run(tmp_path).path), LEARNER)
    learner.restore()
    of_step_2 = list(batches(run.trajectories))[1]  # sampled with version 1
    learner._check_age(of_step_2, 2)
    with pytest.raises(RunFailed, match=r"step 3 has tokens of weights version 1; .* allows 2"):
        learner._check_age(of_step_2, 3)
    learner.close()


def test_a_stop_loses_no_step_whatever_the_checkpoints(tmp_path):
    wanted = settings(tmp_path, checkpoint={"every_steps": 1000})
    run = new_run(tmp_path)
    status = go(wanted, run, stop_after=2)
    assert (status.state, status.step) == ("paused", 2)
    assert checkpoint.steps(run.checkpoints) == [2]
    assert checkpoint.read(run.checkpoints, 2).state["weights_digest"] == status.weights_digest
    again = go(wanted, run)
    assert (again.state, again.step) == ("finished", 4)


def test_a_pause_in_the_middle_of_learning_is_said_to_take_a_while(tmp_path):
    run = new_run(tmp_path)
    wanted = settings(tmp_path)
    conductor = Conductor(wanted, run, local_actor_system(wanted, run))
    run.ask_to_pause(PauseRequest(by="user", reason="test"))
    conductor._learning = 3
    asyncio.run(conductor._watch())
    status = run.read_status()
    assert (status.doing, conductor._status.state) == ("learning step 3", "pausing")
