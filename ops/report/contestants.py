"""The models that are compared: a run's teachers, its student before and after, and other runs' students."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from configs import load
from configs.model import Model
from configs.schema import Settings
from configs.teachers import LocalTeacher
from ops.export import trained_weights
from ops.preflight import check_same_model
from runtime.checkpoint_files import inspect
from runtime.errors import BadInput
from runtime.rundir import RunDirectory
from runtime.status import ALIVE
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt, Task

Role = Literal["teacher", "before", "after", "against"]
WEIGHTS = "weights.safetensors"
PROMPTS = 128
"""The number of held-out prompts where the recipe asks for none."""


class Side(Struct, frozen=True, kw_only=True):
    """Holds a run, and the checkpoint of it that is measured."""

    run: RunDirectory
    settings: Settings
    step: int
    weights: Path
    digest: str


class Contestant(Struct, frozen=True, kw_only=True):
    """Holds one model. An endpoint has no checkpoint here, and is not measured."""

    name: str
    role: Role
    where: str
    """The folder or the endpoint."""
    key: str = ""
    """A teacher's name in the recipe, or the run's name."""
    side: Side | None = None
    """The run and checkpoint of a student."""
    model: Model | None = None
    """The settings of its checkpoint; None for an endpoint."""

    def load(self) -> Any:
        """Returns the contestant's policy. Raises BadInput or Damaged for files that have changed."""
        from policies import weights
        from policies.load import load_frozen, load_policy

        assert self.model is not None
        folder = Path(self.model.path)
        if self.side is None:
            return load_frozen(self.model, folder)
        policy = load_policy(self.model, folder, self.side.settings.seed)
        if self.role != "before":
            policy.load_trained(weights.load(self.side.weights, self.side.digest))
        return policy


def side_of(run: RunDirectory, step: int | None) -> Side:
    """Returns a run that is not active, at `step` or its newest checkpoint.

    Raises BadInput if there is no such run or checkpoint, if its model is gone or if the run is active.
    """
    run.require()
    status = run.read_status()
    if status.state in ALIVE:
        raise BadInput(
            f"run {run.name!r} is {status.state}: what is measured beside it would be wrong; "
            f"wait for its end, or: pippin pause {run.name}"
        )
    settings = load(run.recipe, [])
    check_same_model(run, settings)
    found, _ = trained_weights(run, step)
    return Side(
        run=run,
        settings=settings,
        step=found.step,
        weights=found.path / WEIGHTS,
        digest=found.state["weights_digest"],
    )


def contestants(side: Side, others: Sequence[Side]) -> list[Contestant]:
    """Returns all contestants, in the order of the report. Raises BadInput for a teacher whose
    checkpoint is gone.
    """
    teachers = side.settings.facts.teachers
    found: list[Contestant] = []
    for name, teacher in teachers.items():
        label = f"teacher {name}" if len(teachers) > 1 else "teacher"
        if isinstance(teacher, LocalTeacher):
            from policies.frozen import model_of

            inspect(teacher.path)
            found.append(
                Contestant(
                    name=label,
                    role="teacher",
                    key=name,
                    where=teacher.path,
                    model=model_of(teacher),
                )
            )
        else:
            where = f"{teacher.model} at {teacher.url}"
            found.append(Contestant(name=label, role="teacher", key=name, where=where))
    for role in ("before", "after"):
        found.append(_student(side, role, f"student {role}"))
    return found + [_student(one, "against", f"student of {one.run.name}") for one in others]


def held_out(side: Side, others: Sequence[Side], count: int | None) -> tuple[Task, list[Prompt]]:
    """Returns the task that judges, to be closed, and the held-out prompts that every contestant is
    asked.

    Raises BadInput if another run's are not the same.
    """
    task, prompts = _asked(side, count)
    for other in others:
        own, theirs = _asked(other, len(prompts))
        own.close()
        if [(p.messages, p.truth) for p in theirs] != [(p.messages, p.truth) for p in prompts]:
            task.close()
            raise BadInput(
                f"--against {other.run.name}: its held-out prompts (task {own.name}) are not those of "
                f"{side.run.name} (task {task.name}): only runs of one task can be compared"
            )
    return task, prompts


def _asked(side: Side, count: int | None) -> tuple[Task, list[Prompt]]:
    settings = side.settings
    task = open_task(settings.task, settings.seed, settings.verifier.timeout_s)
    wanted, size = count or settings.eval.prompts or PROMPTS, task.size("eval")
    return task, [task.prompt("eval", i) for i in range(min(wanted, size or wanted))]


def _student(side: Side, role: Role, name: str) -> Contestant:
    model = side.settings.model
    return Contestant(
        name=name, role=role, key=side.run.name, side=side, model=model, where=model.path
    )
