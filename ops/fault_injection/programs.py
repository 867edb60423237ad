"""The programs of the fault runs: one for each algorithm, and for each of its difficult settings.

A fault run computes in exact mode on a network of one layer, so a run takes a quarter of a second and a
single bit that differs shows in its digests. Its tokenizer knows hardly more than the characters that the
task wants: a random network is then right often enough that there is something to learn.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from configs.consistency import check
from configs.dump import to_toml
from configs.schema import Settings
from ops.preflight import origin
from runtime.rundir import RunDirectory

SHAPE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
"""The smallest network of the tests."""
CHARACTERS = "01 "

EVAL: dict[str, Any] = {"prompts": 3, "samples": 2, "temperature": 1.0, "every_steps": 2}
COMMON: dict[str, Any] = {
    "seed": 5,
    "exact": True,
    "task": {"name": "chain", "terms": 3, "modulus": 2},
    "sampling": {"max_new_tokens": 5, "slots": 6},
    "optimizer": {"learning_rate": 1e-2, "schedule": "linear"},
    "eval": EVAL,
    "checkpoint": {"keep": 2},
    "actors": {"samplers": 2, "verifiers": 2, "micro_batch_tokens": 96},
}
GRPO: dict[str, Any] = {"name": "grpo", "steps": 4, "prompts_per_step": 3, "group_size": 4}
DISTILL: dict[str, Any] = {
    "name": "distill",
    "steps": 4,
    "prompts_per_step": 3,
    "teachers": {},
}
"""The distillation program. The teacher is beside the model. Its answers are not cached, or a second run
would ask it nothing.
"""
ES: dict[str, Any] = {"name": "es", "steps": 5, "population": 4, "prompts_per_step": 3}
PREFERENCE: dict[str, Any] = {"name": "preference", "steps": 4, "prompts_per_step": 3}
PROGRAMS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": {**GRPO, "overlong": {"mask_truncated": True}}},
    "grpo-lagging": {
        "algorithm": {**GRPO, "steps": 5, "max_lag": 1, "resample_rounds": 2},
        "eval": {**EVAL, "every_steps": 3},
    },
    "grpo-updates": {
        "algorithm": {**GRPO, "steps": 5, "updates_per_step": 2},
        "checkpoint": {"keep": 1, "every_steps": 3},
    },
    "es": {
        "algorithm": {
            **ES,
            "temperature": 1.0,
            "sigma": 0.02,
            "update": {"name": "plain", "alpha": 0.02},
        },
        "optimizer": {},
    },
    "es-adamw": {
        "algorithm": {
            **ES,
            "fitness": "log_likelihood",
            "perturbation": {"name": "full_rank"},
            "update": {"name": "adamw"},
        },
        "checkpoint": {"keep": 1, "every_steps": 3},
    },
    "distill": {
        "algorithm": {
            **DISTILL,
            "learn_from": {"name": "student", "group_size": 2},
            "signal": {"name": "top_k", "k": 4},
            "cache_gb": 0.0,
        },
    },
    "distill-mixed": {"algorithm": {**DISTILL, "learn_from": {"name": "mixed"}}},
    "distill-text": {
        "algorithm": {
            **DISTILL,
            "learn_from": {"name": "teacher"},
            "signal": {"name": "text"},
            "cache_gb": 0.0,
        },
    },
    "sft": {
        "algorithm": {"name": "sft", "steps": 5, "rows_per_step": 5},
        "sampling": {"slots": 6},
        "eval": {**EVAL, "max_new_tokens": 5},
    },
    "preference": {
        "algorithm": {**PREFERENCE, "loss": {"name": "dpo", "nll_weight": 0.5}},
        "checkpoint": {"keep": 1, "every_steps": 2},
    },
    "preference-kto": {"algorithm": {**PREFERENCE, "loss": {"name": "kto"}}},
    "preference-online": {
        "algorithm": {**PREFERENCE, "learn_from": {"name": "policy", "group_size": 4}},
    },
}
"""The settings of each program by name; a further algorithm is one more entry."""


def settings_of(program: str, model: Path, **changes: Any) -> Settings:
    """Returns the settings of a program on the model in a folder; `changes` replace whole tables."""
    raw = {**COMMON, **PROGRAMS[program], "model": {"path": str(model.absolute())}, **changes}
    if "teachers" in raw["algorithm"]:
        teacher = {"name": "local", "path": str(model.absolute().with_name("teacher"))}
        raw["algorithm"] = {**raw["algorithm"], "teachers": {"t": teacher}}
    settings = msgspec.convert(raw, Settings)
    check(settings)
    return settings


def begin(settings: Settings, folder: Path, name: str) -> RunDirectory:
    """Returns a new run directory, as `pippin launch` makes it."""
    run = RunDirectory(folder, name)
    run.create(to_toml(settings), origin(settings))
    return run


def write_models(folder: Path) -> None:
    """Writes the network of the fault runs with its tokenizer, and its teacher beside it."""
    _write(folder, seed=1)
    _write(folder.with_name("teacher"), seed=2)


def _write(folder: Path, seed: int) -> None:
    from policies.characters import SPECIAL, write_tokenizer
    from policies.random_checkpoint import create_checkpoint

    names = [*SPECIAL, *CHARACTERS]
    create_checkpoint(folder, {**SHAPE, "vocab_size": len(names)}, seed)
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    tokenizer["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    path.write_text(json.dumps(tokenizer))
