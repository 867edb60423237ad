"""The teacher: a frozen policy, or an endpoint, that answers prompts and says how likely answers were.

    generate(prompts)    its own answers, to be imitated
    score(batch)         of each token its log-probability, or its k likeliest and the rest

Stateless towards the run. What it has said lies in the teacher cache, under what it was asked: whoever
asks again, after a pause or in another run, is answered from there. A row of which nothing usable can
be said is marked with the reason, and is never left out silently.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pyarrow as pa
import ray
from msgspec.structs import replace

from actors.endpoint import EndedByAPause, endpoint_of
from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Hello, TeacherReport, TeacherRequest
from configs.schema import Settings
from configs.teachers import EndpointTeacher, LocalTeacher
from policies.batch import Row, pack
from policies.decode import Counts, Decoder, Sampling, Sequence
from policies.device import LEASE_SHARE, bound_cache, gpu_lease, patience_s
from policies.frozen import load_teacher
from policies.load import context_length, load_tokens
from policies.rows import by_teacher, from_answer, from_sequence
from runtime import chat, failpoints
from runtime.blas import load_blas
from runtime.endpoint import Client, Endpoint
from runtime.keys import derive
from runtime.rundir import RunDirectory
from runtime.tasks.prompt import Prompt
from runtime.teacher_cache import Setting, TeacherCache, entry_key
from runtime.teacher_outputs import TeacherOutputs, entry, from_entry, usable, with_teacher_outputs
from runtime.throttle import Throttle
from runtime.trajectory import (
    StopReason,
    Trajectory,
    answer_positions,
    lists,
    to_batch,
    to_rows,
)

FINISHED = (StopReason.STOP, StopReason.LENGTH, StopReason.DATA)


class Teacher:
    """One of the run's teachers: which one, its own number says."""

    def __init__(self, settings: Settings, run: str, actor: ActorId) -> None:
        began = time.perf_counter()
        self._settings, self._facts = settings, settings.facts
        self._run = RunDirectory(Path(run).parent, Path(run).name)
        self._log = open_log(self._run.logs, actor.name)
        self._name, teacher = list(self._facts.teachers.items())[actor.index]
        folder = Path(settings.model.path)
        self._tokens = load_tokens(settings.model, folder)
        self._limit = context_length(folder)
        self._cache = _cache(self._facts.teacher_cache_gb)
        self._lease = gpu_lease()
        self._endpoint: Endpoint | None = None
        self._system = teacher.system
        self._why = ""
        """What an endpoint said when it first gave no answer."""
        if isinstance(teacher, EndpointTeacher):
            self._endpoint = endpoint_of(teacher)
            Client(self._endpoint).close()  # settings that cannot be used are known now
            told = f"{teacher.url}\0{teacher.model}\0{teacher.system}"
            self._digest = hashlib.sha256(told.encode()).hexdigest()
        else:
            with self._lease.hold(
                f"{actor.name} to load", LEASE_SHARE * settings.deadlines.start_s
            ):
                self._frozen = load_teacher(teacher)
            self._decoder = Decoder(self._frozen.policy, settings.sampling.slots)
            self._digest = _content_digest(teacher) if self._cache else ""
        bound_cache()
        self._log.info("started", pid=os.getpid(), teacher=self._name)
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Answers when the constructor has finished."""
        return Hello(
            pid=os.getpid(), backend=load_blas(self._settings.exact), seconds=self._started_s
        )

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    @ray.method(num_returns=2)
    def generate(
        self, request: TeacherRequest, earlier: pa.RecordBatch | None = None
    ) -> tuple[TeacherReport, pa.RecordBatch]:
        """Its answer to each prompt, as rows to be imitated; of those that are known, what is known.

        Rows of `earlier`, which a pause interrupted, are gone on with. If somebody asks to pause now,
        the batch has what there is.
        """
        failpoints.hit("teach.begin")
        began = time.perf_counter()
        before = {
            row.prompt_index: row
            for row in (to_rows(earlier) if earlier is not None else [])
            if row.author == self._name
        }
        known: dict[int, Trajectory] = {}
        for prompt in request.prompts:
            row = before.get(prompt.index)
            if row is None or row.stop_reason not in FINISHED:
                row = self._known(prompt, request)
            if row is not None:
                known[prompt.index] = row
        new = [prompt for prompt in request.prompts if prompt.index not in known]
        waited_s, tokens = 0.0, 0
        rows = dict(known)
        if new and self._endpoint:
            for row in self._asked(self._endpoint, new, request):
                rows[row.prompt_index] = row
                tokens += len(row.tokens) - row.prompt_tokens
        elif new:
            who = f"teacher {self._name} for step {request.step}"
            deadline_s = patience_s(self._settings, self._settings.deadlines.generate_s)
            with self._lease.hold(who, deadline_s) as waited_s:
                made, tokens = self._decoded(new, request, before)
                rows |= {row.prompt_index: row for row in made}
        ordered = [rows[prompt.index] for prompt in request.prompts if prompt.index in rows]
        whole = len(ordered) == len(request.prompts)
        whole = whole and all(row.stop_reason in FINISHED for row in ordered)
        answers = [len(row.tokens) - row.prompt_tokens for row in ordered]
        done = self._done(
            [row.dropped for row in ordered],
            [f"{row.task}, prompt {row.prompt_index}" for row in ordered],
            interrupted=not whole,
            tokens=tokens,
            cached_rows=len(known),
            asked_rows=len(request.prompts),
            one_token_answers=sum(
                count - (row.stop_reason != StopReason.LENGTH) == 1
                for count, row in zip(answers, ordered)
                if row.dropped is None
            ),
            seconds=time.perf_counter() - began - waited_s,
            waited_s=waited_s,
        )
        failpoints.hit("teach.done")
        return done, to_batch(ordered, {"pippin.tokenizer": self._tokens.fingerprint})

    def _decoded(
        self, prompts: list[Prompt], request: TeacherRequest, before: dict[int, Trajectory]
    ) -> tuple[list[Trajectory], int]:
        """Rows of a local teacher's answers, unfinished ones included, and how many tokens are new."""
        own = self._frozen.policy.tokenizer
        # Tokens are taken over where they say the same to the student, the one that ends an answer too.
        ends_alike = own.stop_tokens <= self._tokens.stop_tokens
        shared = own.fingerprint == self._tokens.fingerprint and (
            ends_alike or self._facts.shares_tokens
        )
        plan: list[tuple[Prompt, Sequence]] = []
        rows: list[Trajectory] = []
        for prompt in prompts:
            ids = tuple(own.prompt(prompt.messages))
            if len(ids) + request.max_new_tokens > self._frozen.policy.context_length:
                rows.append(self._failed(prompt, request, "teacher_context"))
                continue
            sequence = Sequence(prompt=ids, key=self._key(prompt))
            if shared and (row := before.get(prompt.index)) is not None:
                at = row.prompt_tokens
                sequence.tokens, sequence.logprobs = row.tokens[at:], row.logprobs[at:]
                sequence.versions = row.weights_version[at:]
                sequence.stop_reason = StopReason.INTERRUPTED
            plan.append((prompt, sequence))
        throttle = self._throttle()
        sampling = Sampling(temperature=request.temperature, max_new_tokens=request.max_new_tokens)
        self._decoder.counts = counts = Counts()
        sequences = [sequence for _, sequence in plan]
        self._decoder.run(sequences, sampling, -1, lambda: -1 if throttle.may_continue() else None)
        mx.clear_cache()
        for prompt, sequence in plan:
            if not sequence.tokens or (not shared and not sequence.finished):
                continue
            row = from_sequence(
                own,
                prompt,
                sequence,
                step=request.step,
                sample=0,
                temperature=request.temperature,
            )
            if shared:
                ids = tuple(self._tokens.prompt(prompt.messages))
                row = by_teacher(row, self._name, ids, self._limit)
            else:
                row = from_answer(
                    self._tokens,
                    prompt,
                    row.text,
                    step=request.step,
                    author=self._name,
                    limit=self._limit,
                    ended=sequence.stop_reason is StopReason.STOP,
                )
            if sequence.finished:
                self._remember(prompt, request, row)
            rows.append(row)
        return rows, counts.sampled_tokens

    def _asked(
        self, endpoint: Endpoint, prompts: list[Prompt], request: TeacherRequest
    ) -> Iterator[Trajectory]:
        """Rows of an endpoint's answers as they come; fewer, if somebody asks to pause."""
        throttle = self._throttle()
        asks = (
            chat.Ask(
                messages=self._messages(prompt),
                key=self._key(prompt),
                max_tokens=request.max_new_tokens,
                temperature=request.temperature,
            )
            for prompt in prompts
        )

        def while_open() -> Iterator[chat.Ask]:
            for ask in asks:
                if not throttle.may_continue():
                    return
                yield ask

        with Client(endpoint) as client, EndedByAPause(client, self._run):
            for index, outcome in client.ask_all(while_open()):
                prompt = prompts[index]
                if isinstance(outcome, chat.Failure):
                    if outcome.kind == "stopped":
                        continue
                    self._log.warning(
                        "no answer", prompt=prompt.index, kind=outcome.kind, reason=outcome.reason
                    )
                    self._why = self._why or outcome.reason
                    yield self._failed(prompt, request, f"teacher_{outcome.kind}")
                    continue
                row = from_answer(
                    self._tokens,
                    prompt,
                    outcome.text,
                    step=request.step,
                    author=self._name,
                    limit=self._limit,
                    ended=outcome.finish_reason != "length",
                )
                self._remember(prompt, request, row)
                yield replace(row, seconds=outcome.seconds)

    def _failed(self, prompt: Prompt, request: TeacherRequest, kind: str) -> Trajectory:
        return from_answer(
            self._tokens, prompt, "", step=request.step, author=self._name, limit=self._limit,
            ended=False, failure=kind,
        )  # fmt: skip

    def _messages(self, prompt: Prompt) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *prompt.messages]

    def _key(self, prompt: Prompt) -> int:
        """Of the prompt's text, not of its number: at the next pass over the data it is known."""
        told = msgspec.json.encode(prompt.messages).decode()
        return derive(self._settings.seed, "teacher", self._name, told)

    def _known(self, prompt: Prompt, request: TeacherRequest) -> Trajectory | None:
        if self._cache is None:
            return None
        batch = self._cache.get(self._answer_key(prompt, request))
        if batch is None:
            return None
        row = to_rows(batch)[0]
        return replace(row, step=request.step, prompt_index=prompt.index, task=prompt.task)

    def _remember(self, prompt: Prompt, request: TeacherRequest, row: Trajectory) -> None:
        if self._cache is not None:
            self._cache.put(self._answer_key(prompt, request), to_batch([row]))

    def _answer_key(self, prompt: Prompt, request: TeacherRequest) -> str:
        settings = {
            "what": "answer",
            "messages": msgspec.json.encode(self._messages(prompt)).decode(),
            "key": str(self._key(prompt)),
            "temperature": request.temperature,
            "max_new_tokens": request.max_new_tokens,
            "author": self._name,
            "student": self._tokens.fingerprint,
            "stop": sorted(self._tokens.stop_tokens),
            "limit": self._limit,
        }
        return entry_key(self._digest, self._tokens.prompt(prompt.messages), self._how(settings))

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    @ray.method(num_returns=2)
    def score(
        self, batch: pa.RecordBatch, dropped: list[str | None]
    ) -> tuple[TeacherReport, pa.RecordBatch]:
        """The batch with what this teacher says of its own rows, those that are dropped excepted.

        If somebody asks to pause, that happens between two micro-batches, and what was said by then
        is in the cache.
        """
        failpoints.hit("teach.begin")
        began = time.perf_counter()
        owners = batch["teacher"].to_pylist()
        mine = [i for i, owner in enumerate(owners) if owner == self._name and not dropped[i]]
        tokens, positions = lists(batch, "tokens"), answer_positions(batch)
        said: dict[int, TeacherOutputs] = {}
        for i in mine:
            if (found := self._said(tokens[i], positions[i])) is not None:
                said[i] = found
        cached = len(said)
        new = [i for i in mine if i not in said and len(positions[i])]
        waited_s = 0.0
        if new:
            who = f"teacher {self._name} to score"
            with self._lease.hold(
                who, patience_s(self._settings, self._settings.deadlines.generate_s)
            ) as waited_s:
                said |= self._scored(new, tokens, positions)
        reasons = list(dropped)
        for i in mine:
            if i not in said or not usable(said[i]).any():
                reasons[i] = reasons[i] or "teacher_unusable"
        whole = all(i in said for i in new)
        places = [f"prompt {index}" for index in batch["prompt_index"].to_pylist()]
        done = self._done(
            reasons,
            places,
            interrupted=not whole,
            tokens=sum(len(tokens[i]) for i in new),
            cached_rows=cached,
            asked_rows=len(mine),
            seconds=time.perf_counter() - began - waited_s,
            waited_s=waited_s,
        )
        failpoints.hit("teach.done")
        return done, with_teacher_outputs(batch, said, tokens, positions)

    def _scored(
        self, new: list[int], tokens: list[np.ndarray], positions: list[np.ndarray]
    ) -> dict[int, TeacherOutputs]:
        throttle, facts = self._throttle(), self._facts
        said: dict[int, TeacherOutputs] = {}
        rows = [Row(tokens[i], positions[i], {}) for i in new]
        for micro in pack(rows, self._settings.actors.micro_batch_tokens):
            if not throttle.may_continue():
                break
            shape = micro.targets_BR.shape
            if facts.teacher_top_k:
                top = self._frozen.top_k(micro, facts.teacher_top_k, facts.teacher_temperature)
                found = {
                    "teacher_ids": np.array(top.ids_NK).reshape(*shape, -1),
                    "teacher_id_logprobs": np.array(top.logprobs_NK).reshape(*shape, -1),
                    "teacher_tail": np.array(top.tail_N).reshape(shape),
                }
            else:
                logprobs_N = self._frozen.logprobs(micro, facts.teacher_temperature)
                found = {"teacher_logprobs": np.array(logprobs_N).reshape(shape)}
            for b, number in enumerate(micro.rows):
                i = new[number]
                said[i] = {name: values[b, : len(positions[i])] for name, values in found.items()}
                if self._cache is not None:
                    self._cache.put(self._score_key(tokens[i], positions[i]), entry(said[i]))
        mx.clear_cache()
        return said

    def _said(self, tokens: np.ndarray, positions: np.ndarray) -> TeacherOutputs | None:
        if self._cache is None:
            return None
        found = self._cache.get(self._score_key(tokens, positions))
        return None if found is None else from_entry(found)

    def _score_key(self, tokens: np.ndarray, positions: np.ndarray) -> str:
        facts = self._facts
        settings = {
            "what": "top_k" if facts.teacher_top_k else "sampled",
            "k": facts.teacher_top_k,
            "temperature": facts.teacher_temperature,
            "positions": hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest(),
        }
        return entry_key(self._digest, tokens, self._how(settings))

    # ── both ─────────────────────────────────────────────────────────────────────────────────────

    def _how(self, settings: dict[str, Setting]) -> dict[str, Setting]:
        """With what decides the numbers' last bits."""
        return {**settings, "backend": load_blas(self._settings.exact)}

    def _throttle(self) -> Throttle:
        return Throttle(self._run, "teach.part", self._settings.power.duty_cycle)

    def _done(
        self, dropped: list[str | None], places: list[str], *, interrupted: bool, **numbers: float
    ) -> TeacherReport:
        first = next((i for i, reason in enumerate(dropped) if reason), None)
        failure = ""
        if first is not None:
            why = f" ({self._why})" if self._why else ""
            failure = f"teacher {self._name}: {dropped[first]} at {places[first]}{why}"
            self._why = ""
        self._log.info("interrupted" if interrupted else "taught", rows=len(dropped), **numbers)
        return msgspec.convert(
            {
                "dropped": dropped,
                "interrupted": interrupted,
                "first_failure": failure,
                "memory_bytes": mx.get_peak_memory(),
                **numbers,
            },
            TeacherReport,
        )


def _cache(limit_gb: float) -> TeacherCache | None:
    return TeacherCache(limit_bytes=int(limit_gb * 1e9)) if limit_gb else None


def _content_digest(teacher: LocalTeacher) -> str:
    """Of every byte of the weights: the cache outlives the checkpoint that was in that folder."""
    out = hashlib.sha256(f"{teacher.quantize_bits}\0{teacher.dtype}\0".encode())
    out.update(msgspec.json.encode([teacher.chat_template, teacher.system], order="sorted"))
    folder = Path(teacher.path)
    kinds = ("*.safetensors", "*.json", "*.jinja")
    for path in sorted(path for kind in kinds for path in folder.glob(kind)):
        with path.open("rb") as file:
            out.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return out.hexdigest()
