"""The benchmarks of distillation share this: small networks, and runs with their actors in one process.

So that runs can be compared at equal work on a machine that others use, a run's processor time is taken
around each of its steps; evaluations and the start are not counted.
"""

import asyncio
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from runtime.errors import Interrupted
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import Status
from runtime.tasks.prompt import Prompt, Task


class Spent(Struct, kw_only=True):
    """Holds a run's processor time."""

    processor_s: float = 0.0
    """The processor seconds of all steps: sampling, teachers' work, learning."""
    at_step: dict[int, float] = field(default_factory=dict)
    """The processor seconds until a step was done, by step."""


class Run(Struct, frozen=True):
    """Holds a run that has ended, or whose time is over."""

    directory: RunDirectory
    status: Status
    spent: Spent

    @property
    def scores(self) -> list[tuple[int, float]]:
        """Returns step and held-out accuracy of each evaluation, the base's first."""
        return [(e.step, e.score) for e in self.status.evals if e.score is not None]

    def first_as_good_as(self, least: float) -> int | None:
        """Returns the first step with an evaluation that is so good; the base does not count."""
        good = [step for step, score in self.scores if step and score >= least]
        return min(good, default=None)


def blank(folder: Path, shape: Mapping[str, Any], seed: int, tokenizer: Path | None = None) -> Path:
    """Returns the folder of a random network of the seedling's architecture with `shape` on top, in
    `folder`.

    It has the seedling's tokenizer, or the one whose files are in `tokenizer`.
    """
    from policies.characters import write_tokenizer
    from policies.device import gpu_lease
    from policies.random_checkpoint import create_checkpoint
    from policies.seedling import ARCHITECTURE

    with gpu_lease().hold("pippin bench", 600.0):
        create_checkpoint(folder, ARCHITECTURE | dict(shape), seed)
    if tokenizer is None:
        write_tokenizer(folder)
    else:
        for file in tokenizer.iterdir():
            shutil.copyfile(file, folder / file.name)
    return folder


def run_here(root: Path, name: str, tables: Mapping[str, Any], until_s: float | None = None) -> Run:
    """Returns a run of these settings, with its actors as plain objects of this process. It runs to its
    end, or until it has taken so much processor time. It is then paused, after the step that exceeded
    the time.
    """
    from actors.conductor import Conductor
    from actors.program import local_actor_system
    from configs.consistency import check
    from configs.dump import to_toml
    from configs.schema import Settings

    settings = msgspec.convert(dict(tables), Settings)
    check(settings)
    directory = RunDirectory(root, name)
    directory.create(to_toml(settings), {})
    system = local_actor_system(settings, directory)
    spent = Spent()
    mark = time.process_time()

    def report(metrics: dict[str, float]) -> None:
        """Notes the time after each step, and the score after each evaluation."""
        nonlocal mark
        now = time.process_time()
        if "step_seconds" in metrics:
            spent.processor_s += now - mark
            spent.at_step[len(spent.at_step) + 1] = spent.processor_s
            if until_s is not None and spent.processor_s >= until_s:
                directory.ask_to_pause(PauseRequest(by="user", reason="its time is over"))
        mark = now

    directory.lock()
    try:
        asyncio.run(Conductor(settings, directory, system, report).run())
    except Interrupted:
        directory.settle("paused")
    finally:
        directory.withdraw_pause()
        directory.unlock()
        system.stop()
    return Run(directory, directory.read_status(), spent)


def visited(run: Run, *, last: bool = False) -> Iterator[tuple[int, Any]]:
    """Yields the policy at the base and at each checkpoint that is kept, or at the last one alone, with
    its step. The policy is one object: the next item changes its weights.
    """
    from configs import load
    from policies import weights
    from policies.load import load_policy
    from runtime import checkpoint

    settings = load(run.directory.recipe, [])
    policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
    steps = sorted({0, *checkpoint.steps(run.directory.checkpoints)})
    for step in steps[-1:] if last else steps:
        if step:
            there = checkpoint.read(run.directory.checkpoints, step)
            file = there.path / "weights.safetensors"
            policy.load_trained(weights.load(file, there.state["weights_digest"]))
        yield step, policy


def held_out(run: Run, count: int) -> tuple[Task, list[Prompt]]:
    """Returns the run's task, and at most so many of its prompts that nothing is learned from."""
    from configs import load
    from runtime.tasks.open import open_task

    settings = load(run.directory.recipe, [])
    task = open_task(settings.task, settings.seed)
    return task, [task.prompt("eval", i) for i in range(min(count, task.size("eval") or count))]


def plain(text: str) -> str:
    """Returns a name that a run can have."""
    return "".join(c if c.isalnum() else "-" for c in text)


def exported(run: Run, folder: Path, step: int | None = None) -> Path:
    """Returns a checkpoint of the run's weights, of its last step unless another is asked for."""
    from ops.export import export

    export(run.directory, folder, step=step, adapters=False)
    return folder
