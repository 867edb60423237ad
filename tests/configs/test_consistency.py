import json

import msgspec
import pytest

from configs import SettingsError
from configs.algorithms.grpo import Grpo
from configs.consistency import check, minutes, problems
from configs.losses import Reinforce, Truncate
from configs.schema import Settings

JSONL = {"name": "jsonl", "train": "a"}
SFT = {"name": "sft"}


def settings(**tables: object) -> Settings:
    raw: dict[str, object] = {"task": {"name": "addition"}, "algorithm": {"name": "grpo"}}
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table} if isinstance(table, dict) else table  # type: ignore[dict-item]
    return msgspec.convert(raw, Settings)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (
            {"model": {"quantize_bits": 4}},
            'model.quantize_bits = 4 needs model.train.name = "lora"',
        ),
        ({"model": {"train": {"name": "lora", "layers": 0}}}, "model.train.layers = 0 trains"),
        (
            {"exact": True, "model": {"dtype": "bfloat16"}},
            'exact = true needs model.dtype "float32" or "checkpoint", got "bfloat16"',
        ),
        ({"task": JSONL, "algorithm": SFT}, 'algorithm "sft" needs task.response'),
        ({"task": JSONL}, 'algorithm "grpo" needs task.reward'),
        (
            {"task": {**JSONL, "reward": "r.py", "response": "x"}},
            "task.response has no effect",
        ),
        (
            {"task": {**JSONL, "reward": "r.py", "eval": "b", "eval_share": 0.2}},
            "task.eval_share has no effect beside task.eval",
        ),
        (
            {"task": {**JSONL, "response": "x", "pass_at": 0.5}, "algorithm": SFT},
            "task.pass_at has no effect without task.reward",
        ),
        (
            {"task": {**JSONL, "reward": "r.py", "eval": "a"}},
            "task.eval is the file of task.train",
        ),
        (
            {"task": {"name": "gsm8k", "train": "a", "eval": "a"}},
            "task.eval is the file of task.train",
        ),
        (
            {"algorithm": {"surrogate": {"name": "gspo"}}},
            'algorithm.surrogate "gspo" needs algorithm.normalizer = "sequence_mean", got '
            '"token_mean"',
        ),
        (
            {"algorithm": {"surrogate": {"name": "clip", "dual": 0.5}}},
            "algorithm.surrogate.dual needs a ratio > 1, or 0 for none, got 0.5",
        ),
        (
            {"algorithm": {"kl": {"placement": "reward_k1"}}},
            "algorithm.kl.placement has no effect while algorithm.kl.coefficient is 0",
        ),
        (
            {"algorithm": {"updates_per_step": 17}},
            "algorithm.updates_per_step = 17 needs at least as many algorithm.prompts_per_step, "
            "got 16",
        ),
        (
            {"algorithm": {"overlong": {"penalty_tokens": 64}}},
            "algorithm.overlong.penalty_tokens = 64 must be less than sampling.max_new_tokens = 64",
        ),
        (
            {"algorithm": {"overlong": {"penalty": 0.5}}},
            "algorithm.overlong.penalty has no effect while penalty_tokens is 0",
        ),
        (
            {"algorithm": {"overlong": {"penalty_tokens": 8, "penalty": 0.0}}},
            "algorithm.overlong.penalty_tokens has no effect while the penalty is 0",
        ),
        (
            {"algorithm": {"resample_rounds": 2, "drop_zero_variance": False}},
            "algorithm.resample_rounds = 2 needs algorithm.drop_zero_variance = true",
        ),
        ({"actors": {"samplers": 17}}, "actors.samplers = 17 needs at least as many"),
        (
            {"actors": {"micro_batch_tokens": 64}},
            "actors.micro_batch_tokens = 64 must exceed sampling.max_new_tokens = 64",
        ),
        (
            {"algorithm": SFT, "sampling": {"temperature": 0.5}},
            "sampling.temperature has no effect",
        ),
        (
            {"optimizer": {"warmup_steps": 101}},
            "optimizer.warmup_steps = 101 must not exceed the run's 100 optimiser steps",
        ),
        (
            {"optimizer": {"final_share": 0.1}},
            'optimizer.final_share has no effect while optimizer.schedule = "constant"',
        ),
        ({"eval": {"samples": 4}}, "eval.samples = 4 needs eval.temperature > 0"),
        ({"eval": {"top_k": 5}}, "eval.top_k has no effect at eval.temperature = 0"),
        ({"eval": {"top_p": 0.9}}, "eval.top_p has no effect at eval.temperature = 0"),
        ({"eval": {"min_p": 0.1}}, "eval.min_p has no effect at eval.temperature = 0"),
        (
            {"eval": {"prompts": 0, "every_steps": 5}},
            "eval.every_steps has no effect while eval.prompts = 0",
        ),
        (
            {"dashboard": {"enabled": False, "port": 8265}},
            "dashboard.port has no effect while dashboard.enabled = false",
        ),
        (
            {"checkpoint": {"every_steps": 10, "keep_every": 25}},
            "checkpoint.keep_every = 25 needs a multiple of checkpoint.every_steps = 10",
        ),
        *(
            (
                {"power": {"hours": ["09:00-17:00", hours]}},
                'power.hours[1] needs two different times of day such as "22:00-07:00", '
                f"got {json.dumps(hours, ensure_ascii=False)}",
            )
            for hours in (
                "22-7",
                "22:00",
                "22:00-24:00",
                "9:00-17:00",
                "22:00-07:60",
                "22:00 - 07:00",
                "22:00-07:00\n",
                "08:00-08:00",
                "always",
                "२२:००-०७:००",
            )
        ),
    ],
)
def test_what_cannot_work_or_would_do_nothing_is_refused(
    tables: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        check(settings(**tables))
    assert str(caught.value).startswith(sentence)
    assert len(list(problems(settings(**tables)))) == 1


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"algorithm": SFT},
        {"exact": True, "model": {"dtype": "float32"}},
        {"model": {"quantize_bits": 4, "train": {"name": "lora"}}},
        {"algorithm": {"surrogate": {"name": "gspo"}, "normalizer": "sequence_mean"}},
        {"algorithm": {"surrogate": {"name": "reinforce"}, "correction": {"name": "truncate"}}},
        {"algorithm": {"surrogate": {"name": "reinforce"}, "correction": {"name": "mask"}}},
        {"algorithm": {"max_lag": 2, "resample_rounds": 3}},
        {"algorithm": {"updates_per_step": 16}},
        {"algorithm": {"updates_per_step": 2}, "optimizer": {"warmup_steps": 200}},
        {"eval": {"temperature": 0.7, "samples": 8, "top_p": 0.9, "top_k": 50, "min_p": 0.1}},
        {"eval": {"prompts": 0}},
        {"checkpoint": {"every_steps": 10, "keep_every": 50}},
        {"power": {"hours": ["22:00-07:00", "12:30-13:00", "23:59-00:00"]}},
        {"task": {**JSONL, "response": "x", "reward": "r.py", "pass_at": 0.5}, "algorithm": SFT},
    ],
)
def test_what_can_work_passes(tables: dict[str, object]) -> None:
    check(settings(**tables))


def test_reinforce_off_policy_is_uncorrected_until_it_has_a_correction() -> None:
    assert Grpo(surrogate=Reinforce(), max_lag=1).is_uncorrected
    assert Grpo(surrogate=Reinforce(), updates_per_step=2).is_uncorrected
    assert not Grpo(surrogate=Reinforce()).is_uncorrected
    assert not Grpo(surrogate=Reinforce(), correction=Truncate(), max_lag=1).is_uncorrected
    assert not Grpo(max_lag=1).is_uncorrected


def test_what_is_needed_comes_before_what_has_no_effect_without_it() -> None:
    first = next(problems(settings(task={**JSONL, "pass_at": 0.5})))
    assert first.startswith('algorithm "grpo" needs task.reward')


def test_hours_are_minutes_after_midnight_and_may_wrap() -> None:
    assert minutes("22:00-07:30") == (1320, 450)
    assert minutes("00:00-23:59") == (0, 1439)
    assert minutes("7-8") is None
