"""The topology: which classes play which roles, and where they live. The only file that says ray.remote.

A conductor (async actor) owns all others; the process that launches a run owns the conductor and Ray's
own daemons (`address="local"`), so that when it goes, all of it goes. Nothing in Ray is durable and
nothing is restarted by Ray: what an actor knows comes from the run directory.

    launcher ── owns ──▶ Ray session ── hosts ──▶ conductor ── owns ──▶ learner, samplers, verifiers, …
"""

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util import metrics as ray_metrics

from actors.conductor import Conductor
from actors.evaluator import Evaluator
from actors.handles import ActorId
from actors.system import ActorDied, ActorStuck, LocalActorSystem
from actors.verifier import Verifier
from configs.schema import Settings
from runtime.clock import Deadline
from runtime.errors import PippinError, RunFailed
from runtime.metrics import METRICS
from runtime.rundir import RunDirectory

OBJECT_STORE_BYTES = 256 << 20
"""The size of the object store. It holds trajectories only: weights travel as files. Ray spills what
exceeds it.
"""
LOOK_S = 1.0
"""Seconds between two looks of a wait at its deadline: short enough for a deadline that counts waking time
only.
"""


def role_class(role: str) -> type:
    """Returns the plain class of a role. It is imported late: the conductor's process has no arrays."""
    match role:
        case "learner":
            from actors.learner import Learner

            return Learner
        case "sampler":
            from actors.sampler import Sampler

            return Sampler
        case "teacher":
            from actors.teacher import Teacher

            return Teacher
        case "verifier":
            return Verifier
        case "evaluator":
            return Evaluator
        case "reader":
            from actors.reader import Reader

            return Reader
    raise ValueError(f"no role {role!r}")


def local_actor_system(settings: Settings, run: RunDirectory) -> LocalActorSystem:
    """Returns all actors as plain objects in this process: for tests and the seedling."""

    def make(actor: ActorId) -> Any:
        return role_class(actor.role)(settings, str(run.path), actor)

    return LocalActorSystem(make)


class RayActorSystem:
    """Starts actors as processes of a Ray session. They live as long as their owner, the conductor."""

    def __init__(self, settings: Settings, run: RunDirectory, generation: int) -> None:
        self._settings = settings
        self._run = run
        self._generation = generation
        self._starts: Counter[ActorId] = Counter()
        self._handles: dict[ActorId, Any] = {}

    def start(self, actor: ActorId) -> Any:
        """Begins to start an actor under a readable name. An actor that is there already is killed."""
        if (old := self._handles.pop(actor, None)) is not None:
            with contextlib.suppress(Exception):
                ray.kill(old)
        self._starts[actor] += 1
        cls = role_class(actor.role)
        self._handles[actor] = (
            ray.remote(cls)
            .options(
                name=readable(actor.name, self._generation, self._starts[actor] - 1),
                num_cpus=0,
                max_restarts=0,
                max_task_retries=0,
                enable_task_events=False,
            )
            .remote(self._settings, str(self._run.path), actor)
        )
        return self._handles[actor]

    def actor(self, actor: ActorId) -> Any:
        """Returns the handle of an actor."""
        return self._handles[actor]

    async def wait(self, reference: Any, timeout_s: float, what: str) -> Any:
        """Returns the value of a reference. See `system.ActorSystem.wait` for what it raises."""
        task, deadline = asyncio.ensure_future(_value(reference)), Deadline(timeout_s)
        try:
            while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
                if deadline.expired():
                    raise ActorStuck(f"waited {timeout_s:g} s for {what}")
            return task.result()
        except ray_errors.RayTaskError as error:
            raise first_cause(error, what) from error
        except (ray_errors.RayActorError, ray_errors.ObjectLostError) as error:
            if error.args and isinstance(error.args[0], ray_errors.RayTaskError):
                # The actor raised in its constructor, and would again.
                raise first_cause(error.args[0], what) from error
            reason = str(error).strip().splitlines()[0]
            raise ActorDied(f"died while we waited for {what} ({reason[:200]})") from None
        finally:
            task.cancel()

    def stop(self) -> None:
        """Ends all actors."""
        for handle in self._handles.values():
            with contextlib.suppress(Exception):
                ray.kill(handle)
        self._handles.clear()


def readable(name: str, generation: int, restarts: int) -> str:
    """Returns an actor's name for the dashboard. Ray holds a name for a while after its actor's death."""
    return name if not generation + restarts else f"{name} (restart {generation}.{restarts})"


async def _value(reference: Any) -> Any:
    return await reference


def first_cause(error: ray_errors.RayTaskError, what: str) -> PippinError:
    """Returns the error that an actor raised. An error that is not Pippin's becomes one sentence."""
    cause = error.cause
    while isinstance(cause, ray_errors.RayTaskError):
        cause = cause.cause
    if isinstance(cause, PippinError):
        return cause
    return RunFailed(f"an error while we waited for {what}: {type(cause).__name__}: {cause}")


class RayConductor:
    """Runs the conductor as an async Ray actor: a method can be called while `run` is under way."""

    def __init__(self, settings: Settings, root: str, name: str, generation: int) -> None:
        run = RunDirectory(Path(root), name)
        gauges = {
            metric: ray_metrics.Gauge(f"pippin_{metric}", description, tag_keys=("run",))
            for metric, description in METRICS.items()
        }

        def report(values: dict[str, float]) -> None:
            for metric, value in values.items():
                gauges[metric].set(value, tags={"run": name})

        self._system = RayActorSystem(settings, run, generation)
        self._conductor = Conductor(settings, run, self._system, report)

    async def pid(self) -> int:
        """Returns the process id once the constructor has finished."""
        return os.getpid()

    async def run(self, dashboard: str) -> None:
        """Runs to the end. Raises what the conductor raises."""
        try:
            await self._conductor.run(dashboard)
        finally:
            self._system.stop()


def start_conductor(settings: Settings, run: RunDirectory, generation: int = 0) -> Any:
    """Begins to start a run's conductor, for the `generation`th time. Returns its handle."""
    return (
        ray.remote(RayConductor)
        .options(
            name=readable("conductor", generation, 0),
            num_cpus=0,
            max_restarts=0,
            enable_task_events=False,
        )
        .remote(settings, str(run.path.parent), run.name, generation)
    )
