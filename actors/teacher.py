"""The teacher: a frozen policy, or an endpoint, that answers prompts and scores answers.

    generate(prompts)    its own answers, to be imitated         (`teacher_answers`)
    score(batch)         its outputs for the tokens of each row  (`teacher_scores`)

It keeps no state of the run. Its outputs lie in the teacher cache under what it was asked, so that a
resumed run, or another one, finds them there. A row without a usable output is marked with the reason, and
is never left out silently.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import msgspec
import pyarrow as pa
import ray

from actors.endpoint import EndedByAPause
from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Hello, TeacherReport, TeacherRequest
from actors.teacher_answers import Names, TeacherAnswers, finished, has_one_token
from actors.teacher_entries import TeacherEntries
from actors.teacher_scores import TeacherScores
from configs.schema import Settings
from configs.teachers import EndpointTeacher
from policies.batch import Row
from policies.device import LEASE_SHARE, bound_cache, gpu_lease, patience_s
from policies.frozen import load_teacher
from policies.generators.endpoint import EndpointGenerator
from policies.generators.local import LocalGenerator
from policies.generators.protocol import Answer, Generator
from policies.load import context_length, load_tokens
from runtime import failpoints
from runtime.blas import load_blas
from runtime.rundir import RunDirectory
from runtime.teacher_outputs import usable, with_teacher_outputs
from runtime.throttle import Throttle
from runtime.trajectory import Trajectory, answer_positions, lists, to_batch


class Teacher:
    """One of the run's teachers, the one that has the actor's number."""

    def __init__(self, settings: Settings, run: str, actor: ActorId) -> None:
        began = time.perf_counter()
        self._settings, facts = settings, settings.facts
        self._run = RunDirectory(Path(run).parent, Path(run).name)
        self._log = open_log(self._run.logs, actor.name)
        self._name, self._teacher = list(facts.teachers.items())[actor.index]
        folder = Path(settings.model.path)
        self._tokens = load_tokens(settings.model, folder)
        self._lease = gpu_lease()
        frozen = None
        if isinstance(self._teacher, EndpointTeacher):
            EndpointGenerator(self._teacher).close()  # settings that cannot be used are known now
        else:
            patience = LEASE_SHARE * settings.deadlines.start_s
            with self._lease.hold(f"{actor.name} to load", patience):
                frozen = load_teacher(self._teacher)
            self._local = LocalGenerator(frozen.policy, settings.sampling.slots)
        entries = TeacherEntries(self._teacher, facts.teacher_cache_gb, exact=settings.exact)
        own = frozen.policy.tokenizer if frozen else None
        names = Names(seed=settings.seed, teacher=self._name, system=self._teacher.system)
        limit = context_length(folder)
        self._answers = TeacherAnswers(names, facts, self._tokens, limit, own, entries)
        if frozen:
            self._scores = TeacherScores(frozen, facts, entries, settings.actors.micro_batch_tokens)
        self._why = ""
        """The reason of the first failure to answer."""
        bound_cache()
        self._log.info("started", pid=os.getpid(), teacher=self._name)
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Answers when the constructor has finished."""
        backend = load_blas(self._settings.exact)
        return Hello(pid=os.getpid(), backend=backend, seconds=self._started_s)

    @ray.method(num_returns=2)
    def generate(
        self, request: TeacherRequest, earlier: pa.RecordBatch | None = None
    ) -> tuple[TeacherReport, pa.RecordBatch]:
        """Returns its answer to each prompt, as rows to be imitated.

        Rows of `earlier`, which a pause interrupted, are gone on with. If a pause is asked for meanwhile,
        the batch has the rows that there are.
        """
        failpoints.hit("teach.begin")
        began = time.perf_counter()
        before = self._answers.earlier(earlier)
        rows = {row.prompt_index: row for row in self._answers.known(request, before)}
        cached = len(rows)
        new = [prompt for prompt in request.prompts if prompt.index not in rows]
        waited_s, tokens = 0.0, 0
        if new:
            with self._generator(f"for step {request.step}") as (generator, waited_s):
                may_continue = self._throttle().may_continue
                for made in self._answers.made(new, request, before, generator, may_continue):
                    rows[made.row.prompt_index] = made.row
                    tokens += made.tokens
                    if made.failure is not None:
                        self._note(made.row, made.failure)
        ordered = [rows[prompt.index] for prompt in request.prompts if prompt.index in rows]
        done = self._done(
            [row.dropped for row in ordered],
            [f"{row.task}, prompt {row.prompt_index}" for row in ordered],
            interrupted=len(ordered) < len(request.prompts) or not all(map(finished, ordered)),
            tokens=tokens,
            cached_rows=cached,
            asked_rows=len(request.prompts),
            one_token_answers=sum(map(has_one_token, ordered)),
            seconds=time.perf_counter() - began - waited_s,
            waited_s=waited_s,
        )
        failpoints.hit("teach.done")
        return done, to_batch(ordered, {"pippin.tokenizer": self._tokens.fingerprint})

    @ray.method(num_returns=2)
    def score(
        self, batch: pa.RecordBatch, dropped: list[str | None]
    ) -> tuple[TeacherReport, pa.RecordBatch]:
        """Returns the batch with this teacher's outputs for its own rows, except those that are dropped.

        A pause is noticed between two micro-batches; the outputs up to there are in the cache.
        """
        failpoints.hit("teach.begin")
        began = time.perf_counter()
        tokens, positions = lists(batch, "tokens"), answer_positions(batch)
        mine = {
            i: Row(tokens[i], positions[i], {})
            for i, owner in enumerate(batch["teacher"].to_pylist())
            if owner == self._name and not dropped[i]
        }
        outputs = self._scores.known(mine)
        cached = len(outputs)
        new = {i: row for i, row in mine.items() if i not in outputs and len(row.positions)}
        waited_s = 0.0
        if new:
            with self._turn("to score") as waited_s:
                outputs |= self._scores.scored(new, self._throttle().may_continue)
        unusable = {i for i in mine if i not in outputs or not usable(outputs[i]).any()}
        done = self._done(
            ["teacher_unusable" if i in unusable else why for i, why in enumerate(dropped)],
            [f"prompt {index}" for index in batch["prompt_index"].to_pylist()],
            interrupted=not all(i in outputs for i in new),
            tokens=sum(len(row.tokens) for row in new.values()),
            cached_rows=cached,
            asked_rows=len(mine),
            seconds=time.perf_counter() - began - waited_s,
            waited_s=waited_s,
        )
        failpoints.hit("teach.done")
        return done, with_teacher_outputs(batch, outputs, tokens, positions)

    @contextlib.contextmanager
    def _generator(self, purpose: str) -> Iterator[tuple[Generator, float]]:
        """Gives the generator and the seconds waited for the GPU."""
        if isinstance(self._teacher, EndpointTeacher):
            asked = EndpointGenerator(self._teacher)
            with contextlib.closing(asked), EndedByAPause(asked, self._run):
                yield asked, 0.0
        else:
            with self._turn(purpose) as waited_s:
                yield self._local, waited_s

    def _turn(self, purpose: str) -> contextlib.AbstractContextManager[float]:
        """Returns the GPU lease to be held, which gives the seconds waited."""
        patience = patience_s(self._settings, self._settings.deadlines.generate_s)
        return self._lease.hold(f"teacher {self._name} {purpose}", patience)

    def _throttle(self) -> Throttle:
        return Throttle(self._run, "teach.part", self._settings.power.duty_cycle)

    def _note(self, row: Trajectory, answer: Answer) -> None:
        prompt, kind, reason = row.prompt_index, answer.failure, answer.reason
        self._log.warning("no answer", prompt=prompt, kind=kind, reason=reason)
        self._why = self._why or reason

    def _done(
        self, dropped: list[str | None], places: list[str], *, interrupted: bool, **numbers: float
    ) -> TeacherReport:
        failure = ""
        first = next((i for i, reason in enumerate(dropped) if reason), None)
        if first is not None:
            why, self._why = f" ({self._why})" if self._why else "", ""
            failure = f"teacher {self._name}: {dropped[first]} at {places[first]}{why}"
        self._log.info("interrupted" if interrupted else "done", rows=len(dropped), **numbers)
        fields = {
            "dropped": dropped,
            "interrupted": interrupted,
            "first_failure": failure,
            **numbers,
        }
        return msgspec.convert({"memory_bytes": mx.get_peak_memory(), **fields}, TeacherReport)
