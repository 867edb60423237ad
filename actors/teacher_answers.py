"""A teacher's own answers to prompts, as rows to be imitated: taken from before, or generated now.

A teacher that writes the student's tokens has them taken over; the text of any other is encoded anew. A
prompt without a usable answer is a row that is marked with the reason.
"""

from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from actors.messages import TeacherRequest
from actors.teacher_entries import TeacherEntries
from configs.facts import Facts
from policies import decode
from policies.generators.local import FROZEN
from policies.generators.protocol import Answer, Begun, Generator, MayContinue, Query
from policies.rows import by_teacher, from_answer, from_sequence
from policies.sampling import Sampling
from policies.tokens import Tokens
from runtime.keys import derive
from runtime.tasks.prompt import Prompt
from runtime.trajectory import StopReason, Trajectory, to_batch, to_rows

FINISHED = (StopReason.STOP, StopReason.LENGTH, StopReason.DATA)
REASONS = {
    "prompt_too_long": "teacher_context",
    "prompt_empty": "teacher_context",
    "nan_logits": "teacher_unusable",
}
"""Why a row is dropped, by the kind of failure; any other kind has its own name."""


def finished(row: Trajectory) -> bool:
    """Whether nothing more will be added to the row."""
    return row.stop_reason in FINISHED


def has_one_token(row: Trajectory) -> bool:
    """Whether the answer is one token besides the one that ends it, and is trained on."""
    ends = row.stop_reason != StopReason.LENGTH
    return row.dropped is None and len(row.tokens) - row.prompt_tokens - ends == 1


class Names(Struct, frozen=True, kw_only=True):
    """What decides a teacher's draws and the names of its answers."""

    seed: int
    teacher: str
    system: str


class NewRow(Struct, frozen=True, kw_only=True):
    """A row that was made now."""

    row: Trajectory
    tokens: int
    """How many were sampled for it in this call."""
    failure: Answer | None = None
    """The answer, if it is a failure."""


class TeacherAnswers:
    """Makes and remembers the rows of one teacher, in the tokens of its student."""

    def __init__(
        self,
        names: Names,
        facts: Facts,
        student: Tokens,
        limit: int,
        own: Tokens | None,
        entries: TeacherEntries,
    ) -> None:
        """`own` are the tokens of a local teacher; `limit` is the student's context, in tokens."""
        self._names, self._student, self._limit = names, student, limit
        self._own = self._writes_as(own, facts)
        self._entries = entries

    def _writes_as(self, own: Tokens | None, facts: Facts) -> Tokens | None:
        """Returns the teacher's tokens where they mean the same to the student, else None.

        The token that ends an answer has to mean the same as well.
        """
        if own is None or own.fingerprint != self._student.fingerprint:
            return None
        ends_alike = own.stop_tokens <= self._student.stop_tokens
        return own if ends_alike or facts.shares_tokens else None

    def earlier(self, batch: pa.RecordBatch | None) -> dict[int, Trajectory]:
        """Returns this teacher's rows of a batch that a pause interrupted, by prompt."""
        rows = to_rows(batch) if batch is not None else []
        return {row.prompt_index: row for row in rows if row.author == self._names.teacher}

    def known(self, request: TeacherRequest, earlier: dict[int, Trajectory]) -> list[Trajectory]:
        """Returns the rows that are finished already: those of before the pause, and the cache's."""
        found = []
        for prompt in request.prompts:
            row = earlier.get(prompt.index)
            if row is None or not finished(row):
                row = self._from_cache(prompt, request)
            if row is not None:
                found.append(row)
        return found

    def made(
        self,
        prompts: Sequence[Prompt],
        request: TeacherRequest,
        earlier: dict[int, Trajectory],
        generator: Generator,
        may_continue: MayContinue,
    ) -> Iterator[NewRow]:
        """Yields rows as they end, then those that were interrupted and can be gone on with."""
        asked = {str(prompt.index): prompt for prompt in prompts}
        queries = [self._query(name, p, earlier.get(p.index)) for name, p in asked.items()]
        sampling = Sampling(temperature=request.temperature, max_new_tokens=request.max_new_tokens)
        for answer in generator.generate(queries, sampling, may_continue):
            prompt = asked[answer.name]
            if answer.interrupted and self._own is None:
                continue
            row = self._row(prompt, request, answer)
            if not answer.failure and not answer.interrupted:
                self._remember(prompt, request, row)
            tokens = answer.new_tokens if answer.ids else len(row.tokens) - row.prompt_tokens
            yield NewRow(
                row=replace(row, seconds=answer.seconds),
                tokens=tokens or 0,
                failure=answer if answer.failure else None,
            )

    def _query(self, name: str, prompt: Prompt, row: Trajectory | None) -> Query:
        begun = None
        if self._own is not None and row is not None:
            at = row.prompt_tokens
            begun = Begun(ids=row.tokens[at:], logprobs=row.logprobs[at:])
        return Query(name=name, key=self._key(prompt), messages=prompt.messages, begun=begun)

    def _row(self, prompt: Prompt, request: TeacherRequest, answer: Answer) -> Trajectory:
        failure = REASONS.get(answer.failure, f"teacher_{answer.failure}")
        if self._own is None or not answer.ids:
            return from_answer(
                self._student,
                prompt,
                answer.text,
                step=request.step,
                author=self._names.teacher,
                limit=self._limit,
                ended=not answer.failure and answer.stop != StopReason.LENGTH,
                failure=failure if answer.failure else None,
            )
        sequence = decode.Sequence(
            prompt=answer.prompt,
            key=self._key(prompt),
            tokens=answer.ids,
            logprobs=answer.logprobs,
            versions=[FROZEN] * len(answer.ids),
            stop_reason=StopReason(answer.stop),
        )
        row = from_sequence(
            self._own,
            prompt,
            sequence,
            step=request.step,
            sample=0,
            temperature=request.temperature,
        )
        ids = tuple(self._student.prompt(prompt.messages))
        row = by_teacher(row, self._names.teacher, ids, self._limit)
        return replace(row, dropped=row.dropped or failure) if answer.failure else row

    # ── what is remembered ───────────────────────────────────────────────────────────────────────

    def _from_cache(self, prompt: Prompt, request: TeacherRequest) -> Trajectory | None:
        batch = self._entries.get(self._entry(prompt, request)) if self._entries.kept else None
        if batch is None:
            return None
        row = to_rows(batch)[0]
        return replace(row, step=request.step, prompt_index=prompt.index, task=prompt.task)

    def _remember(self, prompt: Prompt, request: TeacherRequest, row: Trajectory) -> None:
        if self._entries.kept:
            self._entries.put(self._entry(prompt, request), to_batch([row]))

    def _entry(self, prompt: Prompt, request: TeacherRequest) -> str:
        system = self._names.system
        before = [{"role": "system", "content": system}] if system else []
        asked = {
            "what": "answer",
            "messages": msgspec.json.encode([*before, *prompt.messages]).decode(),
            "key": str(self._key(prompt)),
            "temperature": request.temperature,
            "max_new_tokens": request.max_new_tokens,
            "author": self._names.teacher,
            "student": self._student.fingerprint,
            "stop": sorted(self._student.stop_tokens),
            "limit": self._limit,
        }
        return self._entries.key(self._student.prompt(prompt.messages), asked)

    def _key(self, prompt: Prompt) -> int:
        """Returns the key of the prompt's text, not of its number: the next pass over the data finds it."""
        asked = msgspec.json.encode(prompt.messages).decode()
        return derive(self._names.seed, "teacher", self._names.teacher, asked)
