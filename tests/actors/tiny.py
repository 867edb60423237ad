"""Runs so small that a test can have many: one layer of width 32, answers of six characters, four steps."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from actors.conductor import Conductor
from actors.handles import ActorId
from actors.program import local_actor_system, role_class
from actors.system import ActorDied, ActorSystem, LocalActorSystem
from configs.consistency import check
from configs.schema import Settings
from ops.fault_injection import programs
from policies.characters import VOCABULARY, write_tokenizer
from policies.random_checkpoint import create_checkpoint
from runtime.errors import Interrupted
from runtime.keys import derive
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import Status

SHAPE: dict[str, Any] = {**programs.SHAPE, "vocab_size": VOCABULARY}
DIGESTS = ("weights_digest", "optimizer_digest", "trajectories_digest")


def checkpoint(folder: Path, **shape: Any) -> Path:
    """A random checkpoint in `folder`."""
    if not folder.exists():
        create_checkpoint(folder, SHAPE | shape, seed=1)
        write_tokenizer(folder)
    return folder


GRADED = """
def reward(prompt, completion, row):
    return sum(ord(c) % 2 == 0 for c in completion) / max(len(completion), 1)
"""
"""Likes even-numbered characters: something that even a random network can learn in four steps."""
COARSE = """
def reward(prompt, completion, row):
    return float(sum(map(ord, completion)) % 5 == 0)
"""
"""Often the same for a whole group."""


def settings(folder: Path, *, reward: str = GRADED, **changes: Any) -> Settings:
    """A GRPO run of four steps, in `folder`. `changes` are table__key=value, or whole tables."""
    raw: dict[str, Any] = {
        "seed": 5,
        "model": {"path": str(checkpoint(folder / "model"))},
        "task": {
            "name": "jsonl",
            "train": str(prompts(folder)),
            "reward": str(reward_file(folder, reward)),
            "pass_at": 0.5,
        },
        "algorithm": {"name": "grpo", "steps": 4, "prompts_per_step": 3, "group_size": 4},
        "sampling": {"max_new_tokens": 6, "slots": 8},
        "optimizer": {"learning_rate": 1e-2},
        "eval": {"prompts": 3, "every_steps": 2},
        "checkpoint": {"keep": 3},
        "actors": {"samplers": 2, "verifiers": 2},
    }
    for name, value in changes.items():
        table, _, key = name.partition("__")
        if key:
            raw.setdefault(table, {})[key] = value
        else:
            raw[table] = value
    result = msgspec.convert(raw, Settings)
    check(result)
    return result


def distilled(folder: Path, **changes: Any) -> Settings:
    """A distillation of four steps, on-policy with the whole distribution unless `changes` say else."""
    algorithm: dict[str, Any] = {
        "name": "distill",
        "steps": 4,
        "prompts_per_step": 8,
        "teachers": {"big": {"name": "local", "path": str(teacher(folder))}},
    }
    task = {"name": "jsonl", "train": str(prompts(folder)), "response": "answer"}
    return settings(folder, **{"algorithm": algorithm, "task": task, **changes})


def preference(folder: Path, *, rows: str = "pairs", **changes: Any) -> Settings:
    """Preference learning of four steps from `rows` that nothing judges: two epochs, small micro-batches."""
    algorithm: dict[str, Any] = {
        "name": "preference",
        "steps": 4,
        "prompts_per_step": 6,
        "loss": {"name": "dpo", "nll_weight": 0.5},
    }
    columns = {
        "labels": {"response": "answer", "label": "good"},
        "prompts": {},
    }.get(rows, {"chosen": "chosen", "rejected": "rejected"})
    task = {"name": "jsonl", "train": str(preferences(folder, rows)), "eval_share": 0.25} | columns
    actors = {"samplers": 2, "verifiers": 2, "micro_batch_tokens": 96}
    base = {"algorithm": algorithm, "task": task, "actors": actors}
    return settings(folder, **{**base, **changes})


def preferences(folder: Path, rows: str) -> Path:
    """Sixteen prompts, of which four are held out, each with a right and a wrong sum: as strings, as messages
    or one of them with a label.
    """
    lines = []
    for i in range(16):
        prompt, right, wrong = f"{i}+{i * 7 % 10}=", f"{i + i * 7 % 10}", f"{i + i * 7 % 10 + 1}"
        asked = {"role": "user", "content": prompt}
        said = [[asked, {"role": "assistant", "content": text}] for text in (right, wrong)]
        lines.append(
            {
                "pairs": {"prompt": prompt, "chosen": right, "rejected": wrong},
                "messages": {"chosen": said[0], "rejected": said[1]},
                "labels": {"prompt": prompt, "answer": (right, wrong)[i % 2], "good": i % 2 == 0},
                "prompts": {"prompt": prompt},
            }[rows]
        )
    path = folder / f"{rows}.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b"\n")
    return path


def teacher(folder: Path) -> Path:
    """Another random network, of two layers, that is surer of itself."""
    path = folder / "teacher"
    if not path.exists():
        create_checkpoint(path, SHAPE | {"num_hidden_layers": 2, "hidden_size": 64}, seed=2)
        write_tokenizer(path)
        weights = mx.load(str(path / "model.safetensors"))
        assert isinstance(weights, dict)
        sharper = {name: 4 * w if w.ndim > 1 else w for name, w in weights.items()}
        mx.save_safetensors(str(path / "model.safetensors"), sharper, {"format": "mlx"})
    return path


def reward_file(folder: Path, source: str) -> Path:
    """The reward function, in a file of its own."""
    path = folder / f"reward-{derive(source):x}.py"
    path.write_text(source)
    return path


def prompts(folder: Path) -> Path:
    """Forty prompts, of which four are held out."""
    path = folder / "prompts.jsonl"
    if not path.exists():
        lines = [
            msgspec.json.encode({"prompt": f"{i}+{i * 7 % 10}=", "answer": f"{i + i * 7 % 10}"})
            for i in range(40)
        ]
        path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def new_run(folder: Path, name: str = "run") -> RunDirectory:
    """A run directory, made unless it is there."""
    run = RunDirectory(folder / "runs", name)
    if not run.path.exists():
        run.create("", {})
    return run


def go(
    settings: Settings,
    run: RunDirectory,
    system: ActorSystem | None = None,
    *,
    stop_after: int | None = None,
) -> Status:
    """Run to the end in this process, or pause behind a step; gives the status that is on disk then."""
    system = system or local_actor_system(settings, run)

    def report(metrics: dict[str, float]) -> None:
        if "step_seconds" in metrics:
            reports.append(metrics)
            if len(reports) == stop_after:
                run.ask_to_pause(PauseRequest(by="user", reason="a test"))

    reports: list[dict[str, float]] = []
    run.lock()
    try:
        asyncio.run(Conductor(settings, run, system, report).run())
    except Interrupted:
        run.settle("paused")
    finally:
        run.withdraw_pause()
        run.unlock()
        system.stop()
    return run.read_status()


class Death(msgspec.Struct):
    """An actor's end, in the middle of its `nth` call of `method`."""

    role: str
    method: str
    nth: int = 1
    after: bool = False
    """The method has done its work, but nobody hears of it."""
    calls: int = 0


def mortal_actor_system(
    settings: Settings, run: RunDirectory, deaths: list[Death]
) -> LocalActorSystem:
    """Actors in this process, each of `deaths` happening once."""

    def make(actor: ActorId) -> Any:
        made = role_class(actor.role)(settings, str(run.path), actor)
        for death in deaths:
            if death.role == actor.role:
                setattr(made, death.method, _mortal(getattr(made, death.method), death))
        return made

    return LocalActorSystem(make)


def _mortal(method: Callable[..., Any], death: Death) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        death.calls += 1
        if death.calls != death.nth:
            return method(*arguments)
        if death.after:
            method(*arguments)
        raise ActorDied(f"{death.role} died in call {death.nth} of {death.method}")

    return call


def digests(status: Status) -> list[str]:
    """The three by which two runs are compared."""
    return [getattr(status, name) for name in DIGESTS]
