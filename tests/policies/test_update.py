"""One optimiser step: every combination of settings moves the weights, and cuts change nothing."""

import math
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from configs.algorithms.grpo import Grpo
from configs.consistency import problems
from configs.schema import Settings
from policies.advantages import advantages
from policies.arrays import Arrays
from policies.decode import Decoder, Sampling, Sequence
from policies.load import load_policy
from policies.policy import Policy
from policies.rows import encode, from_sequence
from policies.update import Updater
from policies.weights import digest
from runtime.errors import RunFailed
from runtime.keys import derive
from runtime.tasks.prompt import Prompt
from runtime.trajectory import to_batch, with_columns
from tests.policies.checkpoints import write

SURROGATES = ["clip", "cispo", "gspo", "dppo_tv", "reinforce"]
CORRECTIONS = ["bypass", "truncate", "mask"]
NORMALIZERS = ["token_mean", "sequence_mean", "constant"]
ADVANTAGES = ["group_mean", "group_std", "rloo", "batch_std"]
GRPO = {"name": "grpo", "prompts_per_step": 4, "group_size": 4}
TEACHER = {"name": "local", "path": "/t"}
KLS = [{}, {"coefficient": 0.1}, {"coefficient": 0.1, "placement": "reward_k1"}]


def settings(folder: Path, micro_batch_tokens: int = 4096, **algorithm) -> Settings:
    raw = {
        "task": {"name": "addition", "digits": 1},
        "model": {"path": str(folder)},
        "algorithm": GRPO | algorithm if "name" not in algorithm else algorithm,
        "sampling": {"max_new_tokens": 6},
        # Where a gradient is rounding noise, Adam's first step without an epsilon is its sign.
        "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-3, "max_grad_norm": 0},
        "actors": {"micro_batch_tokens": micro_batch_tokens},
    }
    return msgspec.convert(raw, Settings)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Policy:
    folder = tmp_path_factory.mktemp("update") / "model"
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    write(folder, "qwen3", **shape)
    return load_policy(settings(folder).model, folder, seed=0)


@pytest.fixture(scope="module")
def base(policy: Policy) -> Arrays:
    return policy.trained()


@pytest.fixture(scope="module")
def sampled(policy: Policy, base: Arrays) -> pa.RecordBatch:
    """Sixteen trajectories of ragged length in four groups, with rewards that differ in three."""
    plan = []
    for index, question in enumerate(["1+1=", "12+3=", "s:402613", "x"]):
        messages = [{"role": "user", "content": question}]
        prompt = Prompt(task="addition", index=index, messages=messages)
        ids = encode(policy.tokenizer, prompt, 64)
        for sample in range(4):
            key = derive(1, "sample", 1, index, sample)
            plan.append((prompt, sample, Sequence(prompt=ids, key=key)))
    for limit, part in ((6, plan[::2]), (3, plan[1::2])):
        Decoder(policy, 16).run([s for *_, s in part], Sampling(max_new_tokens=limit))
    rows = [
        from_sequence(policy.tokenizer, prompt, sequence, step=1, sample=sample, temperature=1.0)
        for prompt, sample, sequence in plan
    ]
    rewards = [float(i % 3 == 0) if i >= 4 else 0.5 for i in range(16)]
    return with_columns(to_batch(rows), {"reward": rewards})


def with_advantages(batch: pa.RecordBatch, updater: Updater, grpo: Grpo) -> pa.RecordBatch:
    """The batch as the learner gets it, with the conductor's advantages, and then annotated."""
    values = advantages(
        batch["reward"].to_numpy(), batch["prompt_index"].to_numpy(), grpo.advantage
    )
    return updater.annotated(with_columns(batch, {"advantage": values.tolist()}))


def stale(batch: pa.RecordBatch) -> pa.RecordBatch:
    """As if another version had sampled it: log-probabilities off by up to 0.1."""
    dice = np.random.default_rng(0)
    moved = [
        [p and p + float(dice.uniform(-0.1, 0.1)) for p in row]
        for row in batch["logprobs"].to_pylist()
    ]
    return with_columns(batch, {"logprobs": moved})


def one_step(
    policy: Policy, base: Arrays, batch: pa.RecordBatch, wanted: Settings
) -> tuple[dict[str, float], Arrays]:
    """The report of a step from the base, and the weights behind it."""
    assert isinstance(wanted.algorithm, Grpo)
    policy.load_trained(base)
    updater = Updater(policy, wanted)
    report = updater.step(with_advantages(batch, updater, wanted.algorithm))
    return report, policy.trained()


def largest_gap(one: Arrays, other: Arrays) -> float:
    return max(float(np.abs(np.array(one[k] - other[k])).max()) for k in one)


def test_the_lists_here_are_the_schema_s():
    fields = {f.name: f.type for f in msgspec.structs.fields(Grpo)}
    tags = {
        n: [t.__struct_config__.tag for t in get_args(fields[n])]
        for n in ("surrogate", "correction")
    }
    assert tags == {"surrogate": SURROGATES, "correction": CORRECTIONS}
    assert list(get_args(fields["normalizer"])) == NORMALIZERS
    assert list(get_args(fields["advantage"])) == ADVANTAGES


@pytest.mark.soak
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_possible_combination_takes_a_step(policy, base, sampled, surrogate, correction):
    batch, tried = stale(sampled), 0
    for normalizer in NORMALIZERS:
        for advantage in ADVANTAGES:
            for kl in KLS:
                wanted = settings(
                    policy.folder, surrogate={"name": surrogate}, correction={"name": correction},
                    normalizer=normalizer, advantage=advantage, kl=kl,
                )  # fmt: skip
                if list(problems(wanted)):
                    continue
                report, after = one_step(policy, base, batch, wanted)
                assert all(np.isfinite(value) for value in report.values()), report
                assert report["grad_norm"] > 0 and largest_gap(base, after) > 0
                assert report["mismatch_max"] == pytest.approx(0.1, abs=0.02)
                assert ("kl_reference" in report) == bool(kl)
                tried += 1
    assert tried == (12 if surrogate == "gspo" else 36)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_equal_rewards_leave_the_weights_bit_identical(policy, base, sampled, surrogate):
    same = with_columns(sampled, {"reward": [0.7] * 16})
    before = digest(base)
    for normalizer in NORMALIZERS:
        wanted = settings(policy.folder, surrogate={"name": surrogate}, normalizer=normalizer)
        report, after = one_step(policy, base, same, wanted)
        assert report["grad_norm"] == 0
        assert digest(after) == before


@pytest.mark.parametrize("correction", ["bypass", "truncate"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("surrogate", ["clip", "cispo", "gspo"])
def test_cutting_a_step_changes_nothing(policy, base, sampled, surrogate, normalizer, correction):
    ways = {"surrogate": {"name": surrogate}, "normalizer": normalizer, "kl": {"coefficient": 0.1},
            "correction": {"name": correction}, "entropy_bonus": 0.01}  # fmt: skip
    batch = stale(sampled)
    results = [
        one_step(policy, base, batch, settings(policy.folder, tokens, **ways))
        for tokens in (4096, 100, 8)
    ]
    for report, after in results[1:]:
        assert largest_gap(results[0][1], after) < 1e-6
        for name, value in results[0][0].items():
            assert report[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("updates", [2, 3, 4])
def test_several_updates_take_a_share_of_the_groups_each(policy, base, sampled, updates):
    wanted = settings(policy.folder, updates_per_step=updates)
    policy.load_trained(base)
    updater = Updater(policy, wanted)
    batch = with_advantages(sampled, updater, Grpo())
    report = updater.step(batch)
    assert updater.optimizer.updates == updates
    assert report["trained_tokens"] == sum(map(sum, batch["sampled"].to_pylist()))
    assert report["mismatch_max"] < 1e-4  # of the first update: nothing has moved yet
    after = policy.trained()
    one = one_step(policy, base, sampled, settings(policy.folder))[1]
    assert largest_gap(one, base) > 0
    assert largest_gap(one, after) > 0


def test_gradients_are_those_of_the_step_and_change_nothing(policy, base, sampled):
    policy.load_trained(base)
    updater = Updater(policy, settings(policy.folder))
    batch = with_advantages(sampled, updater, Grpo())
    gradients = updater.gradients(batch)
    assert digest(policy.trained()) == digest(base)
    norm = float(np.sqrt(sum((np.array(g) ** 2).sum() for g in gradients.values())))
    assert updater.step(batch)["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert gradients.keys() == base.keys()


def test_dropped_and_unscored_rows_have_no_effect(policy, base, sampled):
    wanted = settings(policy.folder)
    policy.load_trained(base)
    updater = Updater(policy, wanted)
    batch = with_advantages(sampled, updater, Grpo())
    keep = [i for i in range(16) if i % 5]
    dropped = ["truncated" if i % 10 == 0 else None for i in range(16)]
    values = [None if i % 10 == 5 else a for i, a in enumerate(batch["advantage"].to_pylist())]
    marked = updater.annotated(with_columns(batch, {"dropped": dropped, "advantage": values}))
    expected = updater.gradients(batch.take(pa.array(keep)))
    found = updater.gradients(marked)
    assert largest_gap(expected, found) < 1e-7


def test_a_batch_without_rows_changes_nothing(policy, base, sampled):
    policy.load_trained(base)
    updater = Updater(policy, settings(policy.folder))
    for batch in (sampled, updater.annotated(sampled)):
        assert updater.step(batch) == {"trained_tokens": 0.0}
    assert digest(policy.trained()) == digest(base) and updater.optimizer.updates == 0


def test_tokens_that_no_teacher_scored_are_counted_and_change_nothing(policy, base, sampled):
    algorithm = {"name": "distill", "signal": {"name": "sampled"}, "teachers": {"big": TEACHER}}
    policy.load_trained(base)
    updater = Updater(policy, settings(policy.folder, prompts_per_step=16, **algorithm))
    silent = [[math.nan] * len(row) for row in sampled["tokens"].to_pylist()]
    report = updater.step(updater.annotated(with_columns(sampled, {"teacher_logprobs": silent})))
    assert report["unusable_tokens"] == sum(map(sum, sampled["sampled"].to_pylist())) > 0
    assert report["trained_tokens"] == 0 and math.isnan(report["divergence"])
    assert digest(policy.trained()) == digest(base) and updater.optimizer.updates == 0


def test_a_weight_that_no_term_looks_at_stops_the_step(policy, base, sampled):
    policy.load_trained(base)
    updater = Updater(policy, settings(policy.folder))
    batch = with_advantages(sampled, updater, Grpo())
    foreign = with_columns(
        batch, {"cross_entropy_weight": batch["policy_gradient_weight"].to_pylist()}
    )
    for learn in (updater.step, updater.gradients):
        with pytest.raises(ValueError, match="cross_entropy_weights, but no loss term uses them"):
            learn(foreign)
    assert digest(policy.trained()) == digest(base)


def test_a_gradient_that_is_not_finite_stops_and_keeps_the_weights(policy, base, sampled):
    wanted = settings(policy.folder, surrogate={"name": "reinforce"})
    policy.load_trained(base)
    updater = Updater(policy, wanted)
    broken = updater.annotated(with_columns(sampled, {"advantage": [float("inf")] * 16}))
    with pytest.raises(
        RunFailed, match=r"norm is (nan|inf) at update 1; the weights before it are kept"
    ):
        updater.step(broken)
    assert digest(policy.trained()) == digest(base) and updater.optimizer.updates == 0


def test_the_reference_s_log_ratio_is_taken_off_the_reward_before_advantages(policy, base, sampled):
    policy.load_trained(base)
    batch, wanted = stale(sampled), settings(policy.folder, kl=KLS[2])
    updater = Updater(policy, wanted)
    rewards = batch["reward"].to_numpy() - 0.1 * updater.reward_kl(batch)
    expected = advantages(rewards, batch["prompt_index"].to_numpy(), "group_mean")
    annotated = updater.annotated(batch)
    np.testing.assert_allclose(annotated["advantage"].to_numpy(), expected, atol=1e-12)
    for values, chosen, advantage in zip(
        annotated["token_advantage"].to_pylist(), batch["sampled"].to_pylist(), expected
    ):
        assert values == pytest.approx([advantage * one for one in chosen], rel=1e-6)
    plain = Updater(policy, settings(policy.folder, kl=KLS[1]))
    assert plain.annotated(batch)["advantage"].null_count == 16


def test_reward_kl_is_zero_before_training_and_sees_the_reference_only(policy, base, sampled):
    policy.load_trained(base)
    updater = Updater(policy, settings(policy.folder, kl=KLS[2]))
    np.testing.assert_allclose(updater.reward_kl(sampled), 0, atol=1e-4)
    policy.load_trained({k: v + 0.01 for k, v in base.items()})
    np.testing.assert_allclose(updater.reward_kl(sampled), 0, atol=1e-4)
    shifted = [[p and p + 0.25 for p in row] for row in sampled["logprobs"].to_pylist()]
    expected = [0.25 * sum(row) for row in sampled["sampled"].to_pylist()]
    moved = with_columns(sampled, {"logprobs": shifted})
    np.testing.assert_allclose(updater.reward_kl(moved), expected, atol=1e-4)
