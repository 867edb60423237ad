"""Evolution strategies as a run: what a version is, what travels, what a bad fitness does to it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.handles import ActorId
from actors.learner import Learner
from configs.schema import Settings
from policies import weights
from policies.evolution.centre import Lineage
from policies.evolution.trainer import LINEAGE, EvolutionTrainer, centre_of
from policies.load import load_policy
from runtime.errors import BadInput, RunFailed
from runtime.trajectory import Trajectory, to_batch, to_rows
from runtime.trajectory_log import batches
from tests.actors.tiny import GRADED, go, new_run, settings

MOST_BYTES = 100_000
"""Exchanged in a generation of 32 members and 200 prompts, trajectories aside."""
ES: dict[str, Any] = {
    "name": "es",
    "steps": 4,
    "prompts_per_step": 3,
    "population": 6,
    "sigma": 0.05,
}
PLAIN = {"name": "plain", "alpha": 0.05}
VARIANTS: dict[str, dict[str, Any]] = {
    "low rank": {"algorithm": {"update": PLAIN}},
    "full rank": {"algorithm": {"update": PLAIN, "perturbation": {"name": "full_rank"}}},
    "anchored": {"algorithm": {"update": PLAIN, "anchor": {"name": "l2", "strength": 1.0}}},
    "adamw": {"algorithm": {"update": {"name": "adamw"}}, "optimizer": {"learning_rate": 1e-2}},
    "adapters": {
        "algorithm": {"update": PLAIN, "noise": "normal"},
        "model__train": {"name": "lora", "rank": 4},
        "model__quantize_bits": 4,
    },
    "half precision": {"algorithm": {"update": PLAIN}, "model__dtype": "bfloat16"},
}


def evolution(folder: Path, algorithm: dict[str, Any] | None = None, **changes: Any) -> Settings:
    """A run of four generations."""
    whole = {"update": PLAIN, **ES, **(algorithm or {})}
    no_eval = {"eval": {"prompts": 0}, "optimizer": {}}
    return settings(folder, algorithm=whole, **{**no_eval, **changes})


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_log_of_a_finished_run_gives_its_weights_bit_for_bit(tmp_path, variant):
    wanted = evolution(tmp_path, **VARIANTS[variant])
    run = new_run(tmp_path)
    status = go(wanted, run, stop_after=2)
    status = go(wanted, run)
    assert status.state == "finished"
    log = (run.checkpoints / "step-000004" / LINEAGE).read_bytes()
    lineage = msgspec.json.decode(log, type=Lineage)
    assert len(lineage.generations) == 4
    policy = load_policy(wanted.model, Path(wanted.model.path), wanted.seed)
    _, centre = centre_of(policy, wanted)
    centre.replay(lineage)
    centre.into(policy)
    assert weights.digest(policy.trained()) == status.weights_digest != lineage.base


def test_order_does_not_matter_and_stale_and_second_results_are_ignored_and_counted(tmp_path):
    wanted = evolution(tmp_path)
    run = new_run(tmp_path)
    go(wanted, run)
    rows = [row for batch in batches(run.trajectories) for row in to_rows(batch)]
    first, second = ([row for row in rows if row.step == step] for step in (1, 2))
    twice = [msgspec.structs.replace(row, reward=(row.reward or 0.0) + 1) for row in second[:5]]

    def moved(*generations: list[Trajectory]) -> tuple[str, float]:
        policy = load_policy(wanted.model, Path(wanted.model.path), wanted.seed)
        trainer, ignored = EvolutionTrainer(policy, wanted), 0.0
        for generation in generations:
            ignored = trainer.step(to_batch(generation))["results_ignored"]
        return weights.digest(policy.trained()), ignored

    plain, none = moved(first, second)
    assert moved(first[::-1], first[:7] + second[::-1] + twice) == (plain, 12)
    assert none == 0 and moved(first, twice + second)[0] != plain


def test_a_generation_of_32_members_and_200_prompts_exchanges_few_bytes(tmp_path):
    es = {"steps": 1, "population": 32, "prompts_per_step": 200}
    wanted = evolution(tmp_path, es, sampling={"max_new_tokens": 1, "slots": 256})
    run = new_run(tmp_path)
    status = go(wanted, run)
    assert status.ledger["trained"] == 32 * 200
    assert status.metrics["flat_generations"] == 0
    assert 32 * 200 * 8 < status.metrics["exchanged_bytes"] < MOST_BYTES


def test_equal_fitness_is_no_update_and_counted(tmp_path):
    equal = "def reward(prompt, completion, row):\n    return 0.5\n"
    for update in (PLAIN, {"name": "adamw"}):
        wanted = evolution(tmp_path, {"steps": 2, "update": update}, reward=equal)
        run = new_run(tmp_path, update["name"])
        status = go(wanted, run)
        base = msgspec.json.decode(
            (run.checkpoints / "step-000002" / LINEAGE).read_bytes(), type=Lineage
        )
        assert (status.state, base.generations) == ("finished", [[], []])
        assert status.weights_digest == base.base
        lines = run.read_lines("metrics.jsonl")
        assert [line["flat_generations"] for line in lines] == [1, 1]
        assert [line["update_norm"] for line in lines] == [0, 0]


def test_a_member_with_a_fitness_that_is_no_number_is_left_out_with_its_twin(tmp_path):
    broken = GRADED.replace(
        "    return",
        "    if sum(map(ord, completion)) % 23 == 0:\n        return float('nan')\n    return",
    )
    wanted = evolution(tmp_path, {"population": 12}, reward=broken, sampling__max_new_tokens=3)
    run = new_run(tmp_path)
    status = go(wanted, run)
    assert status.state == "finished"
    lines = run.read_lines("metrics.jsonl")
    for batch, line in zip(batches(run.trajectories), lines, strict=True):
        failed = {row.sample // 2 for row in to_rows(batch) if row.failure is not None}
        assert line["members_left_out"] == 2 * len(failed)
    counts = [line["members_left_out"] for line in lines]
    assert max(counts) > 0 and min(counts) < 12
    assert status.ledger["failed"] == {"not_a_number": sum(status.ledger["failed"].values())}


def test_no_number_from_anybody_stops_the_run_with_the_first_cause(tmp_path):
    broken = "def reward(prompt, completion, row):\n    return float('nan')\n"
    with pytest.raises(RunFailed) as caught:
        go(evolution(tmp_path, reward=broken), new_run(tmp_path))
    assert "the reward failed 20 times in a row" in str(caught.value)
    assert "not_a_number" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "changes", "words"),
    [
        (
            {"perturbation": {"name": "low_rank", "rank": 33}},
            {},
            "algorithm.perturbation.rank = 33",
        ),
        ({"sigma": 1e-12}, {}, "algorithm.sigma = 1e-12 is lost in float32"),
        (
            {"sigma": 1e-4},
            {"model__dtype": "bfloat16", "algorithm__perturbation": {"name": "full_rank"}},
            "is lost in bfloat16",
        ),
        (
            {"update": {"name": "plain", "alpha": 1e-12}},
            {},
            "algorithm.update.alpha = 1e-12 is lost in float32",
        ),
        ({"modules": ["self_attn.no_proj"]}, {}, "'self_attn.no_proj' is no trained module"),
    ],
)
def test_what_the_weights_cannot_express_is_refused_when_the_learner_starts(
    tmp_path, algorithm, changes, words
):
    wanted = evolution(tmp_path, algorithm, **changes)
    with pytest.raises(BadInput) as caught:
        Learner(wanted, str(new_run(tmp_path).path), ActorId("learner"))
    assert words in str(caught.value) and "\n" not in str(caught.value)
