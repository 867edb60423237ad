"""The record that every algorithm shares: prompts, sampled tokens, their log-probabilities, rewards.

There is one Arrow schema. A batch of trajectories is one `pyarrow.RecordBatch`: it goes into Ray's object
store once and is read there without a copy, and the same batch is appended to the run's log.
Token-level columns are lists of equal length T for each row; T counts prompt and completion.

The record preserves tokens: the ids that were sampled are the ids that are trained on. The stop token and
its log-probability are kept. Null is not zero: an unscored reward and a missing advantage are null.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import Struct, to_builtins

SCHEMA_VERSION = 2
"""Version of the schema. Version 2 added spans, pairs and the annotation of loss terms; logs of version 1 are
read as having none of them."""


class StopReason(StrEnum):
    """The reason for which a sequence ended."""

    STOP = "stop"
    """A stop token was sampled."""
    LENGTH = "length"
    """The limit of new tokens was reached: the answer is truncated."""
    INTERRUPTED = "interrupted"
    """Sampling was interrupted; the sequence can be continued."""
    DATA = "data"
    """The answer was not sampled but read from a data set."""


def _listed(item: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", item, nullable=False))


ANNOTATION = (
    "token_advantage",
    "policy_gradient_weight",
    "cross_entropy_weight",
    "divergence_weight",
    "preference_weight",
)
"""Columns with each token's advantage, and its weight in each loss term."""

SPAN = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("begin", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
    ]
)

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("prompt_index", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("tokens", _listed(pa.int32()), nullable=False),
        pa.field("sampled", _listed(pa.bool_()), nullable=False),
        pa.field("logprobs", _listed(pa.float32()), nullable=False),
        pa.field("weights_version", _listed(pa.int32()), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("temperature", pa.float32(), nullable=False),
        pa.field("stop_reason", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("passed", pa.bool_()),
        pa.field("reward_parts", pa.string()),
        pa.field("failure", pa.string()),
        pa.field("advantage", pa.float64()),
        pa.field("dropped", pa.string()),
        pa.field("author", pa.string()),
        pa.field("teacher", pa.string()),
        pa.field("teacher_logprobs", _listed(pa.float32())),
        pa.field("teacher_ids", _listed(pa.int32())),
        pa.field("teacher_id_logprobs", _listed(pa.float32())),
        pa.field("teacher_tail", _listed(pa.float32())),
        pa.field("seconds", pa.float32(), nullable=False),
        pa.field("spans", pa.list_(pa.field("item", SPAN, nullable=False))),
        pa.field("pair", pa.int64()),
        pa.field("preference", pa.int8()),
        *(pa.field(name, _listed(pa.float32())) for name in ANNOTATION),
    ],
    metadata={"pippin.schema": str(SCHEMA_VERSION)},
)
"""The columns of a record. `tokens`, `sampled`, `logprobs` and `weights_version` have T items in each row:
`sampled` is True where the policy chose the token, `logprobs` is its float32 log-probability under
the distribution that was really sampled from (temperature included; 0 elsewhere), `weights_version`
the weights that chose it (-1 elsewhere). The first `prompt_tokens` tokens are the prompt. `text` is the
completion that the verifier gets; it is never encoded again. `reward_parts` is a JSON object, `failure` the
kind of the verifier's failure, `dropped` the reason if a trajectory is not trained on, `seconds` the
wall-clock time from request to end.

In distillation, `author` is the teacher that wrote the answer, null for the policy and for data, and
`teacher` is the teacher that scores it. `teacher_logprobs` has T items: that teacher's log-probability of the
answer's tokens (NaN without a teacher output, 0 on other tokens). With top-k instead, `teacher_ids` and
`teacher_id_logprobs` hold the k likeliest ids for each of the answer's tokens in turn, and `teacher_tail` the
log-mass of all other ids. These three columns are sent to the learner and are not in the log.

`spans` are the turns of an episode in order: a role, and its tokens from `begin` up to `end`. They are null
for one prompt and one answer, whose spans `spans_of` returns. Rows of one `pair` are two answers to a prompt,
and `preference` is 1 (preferred) or -1 (rejected); a row with a `preference` and no pair was judged alone.

The columns of `ANNOTATION` have T items. `Algorithm.annotate` computes them from the others, and they are not
in the log."""

UNLOGGED = ("teacher_ids", "teacher_id_logprobs", "teacher_tail", *ANNOTATION)
"""Columns that are not in the log: top-k outputs with about 8 bytes for each of k ids, a hundred times a
token's other data, and columns that can be computed again."""

PROMPT, ANSWER, OBSERVATION = "prompt", "answer", "observation"
"""Roles of spans: the given text, the policy's (or the data's) answer, and an environment's reply."""


class Span(Struct, frozen=True):
    """One turn of an episode: tokens `begin` up to `end` of a row."""

    role: str
    begin: int
    end: int


VOLATILE = frozenset({"seconds"})
"""Columns that may differ between two equal runs, so they are not part of a digest."""


class Trajectory(Struct, frozen=True, kw_only=True):
    """One row as Python values, for making a batch and for reading one."""

    step: int
    task: str
    prompt_index: int
    sample: int
    key: int
    tokens: list[int]
    sampled: list[bool]
    logprobs: list[float]
    weights_version: list[int]
    prompt_tokens: int
    temperature: float
    stop_reason: StopReason
    text: str
    seconds: float = 0.0
    reward: float | None = None
    passed: bool | None = None
    reward_parts: str | None = None
    failure: str | None = None
    advantage: float | None = None
    dropped: str | None = None
    author: str | None = None
    teacher: str | None = None
    teacher_logprobs: list[float] | None = None
    teacher_ids: list[int] | None = None
    teacher_id_logprobs: list[float] | None = None
    teacher_tail: list[float] | None = None
    spans: list[Span] | None = None
    pair: int | None = None
    preference: int | None = None
    token_advantage: list[float] | None = None
    policy_gradient_weight: list[float] | None = None
    cross_entropy_weight: list[float] | None = None
    divergence_weight: list[float] | None = None
    preference_weight: list[float] | None = None

    def __post_init__(self) -> None:
        lengths = {
            "tokens": len(self.tokens),
            "sampled": len(self.sampled),
            "logprobs": len(self.logprobs),
            "weights_version": len(self.weights_version),
        }
        for name in ("teacher_logprobs", *ANNOTATION):
            if (values := getattr(self, name)) is not None:
                lengths[name] = len(values)
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a trajectory's token columns need one length, got {lengths}")
        if not 0 < self.prompt_tokens <= len(self.tokens):
            raise ValueError(
                f"a trajectory's prompt needs 1 to {len(self.tokens)} tokens, got {self.prompt_tokens}"
            )
        if self.spans is not None:
            _check_spans(self.spans, self.sampled)


def _check_spans(spans: list[Span], sampled: list[bool]) -> None:
    """Raises ValueError unless spans cover a row without gaps and all sampled tokens are in answers."""
    ends = [0, *(span.end for span in spans)]
    whole = ends[-1] == len(sampled) and all(s.begin == end < s.end for s, end in zip(spans, ends))
    if not whole:
        raise ValueError(f"spans need to cover 0 to {len(sampled)} without gaps, got {spans}")
    for span in spans:
        if span.role != ANSWER and any(sampled[span.begin : span.end]):
            raise ValueError(f"sampled tokens belong in an {ANSWER}, got some in {span}")


def spans_of(row: Trajectory) -> list[Span]:
    """Returns a row's turns; without `spans` these are its prompt and its answer."""
    if row.spans is not None:
        return row.spans
    first = Span(PROMPT, 0, row.prompt_tokens)
    rest = Span(ANSWER, row.prompt_tokens, len(row.tokens))
    return [first, rest] if rest.end > rest.begin else [first]


def answer_positions(batch: pa.RecordBatch) -> list[np.ndarray]:
    """Returns the positions of each row's tokens that a loss may use: sampled ones, or the data's answer."""
    lengths = (len(tokens) for tokens in lists(batch, "tokens"))
    rows = zip(
        lengths,
        lists(batch, "sampled"),
        batch["prompt_tokens"].to_pylist(),
        batch["stop_reason"].to_pylist(),
        batch["spans"].to_pylist(),
    )
    return [
        _data_positions(before, length, spans)
        if reason == StopReason.DATA
        else np.flatnonzero(sampled)
        for length, sampled, before, reason, spans in rows
    ]


def _data_positions(before: int, length: int, spans: list[dict[str, Any]] | None) -> np.ndarray:
    if spans is None:
        return np.arange(before, length)
    answers = [np.arange(s["begin"], s["end"]) for s in spans if s["role"] == ANSWER]
    return np.concatenate([np.empty(0, np.int64), *answers]).astype(np.int64)


def to_batch(rows: Sequence[Trajectory], metadata: dict[str, str] | None = None) -> pa.RecordBatch:
    """Returns a batch of the rows in order; `metadata` (tokenizer fingerprint, …) is added to the schema."""
    columns = [
        pa.array([_plain(getattr(row, field.name)) for row in rows], type=field.type)
        for field in SCHEMA
    ]
    merged = {
        **(SCHEMA.metadata or {}),
        **{k.encode(): v.encode() for k, v in (metadata or {}).items()},
    }
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA.with_metadata(merged))


def to_rows(batch: pa.RecordBatch) -> list[Trajectory]:
    """Returns the rows of a batch as Python values."""
    return [
        Trajectory(
            **{
                **row,
                "stop_reason": StopReason(row["stop_reason"]),
                "spans": row["spans"] and [Span(**span) for span in row["spans"]],
            }
        )
        for row in upgraded(batch).to_pylist()
    ]


def upgraded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns a batch of an earlier schema version with the columns added since, which are all null."""
    if batch.schema.names == SCHEMA.names:
        return batch
    columns = [
        batch.column(field.name)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in SCHEMA
    ]
    metadata = {**(batch.schema.metadata or {}), **(SCHEMA.metadata or {})}
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA.with_metadata(metadata))


def lists(batch: pa.RecordBatch, column: str) -> list[np.ndarray]:
    """Returns a token column as one numpy view for each row, without a copy (booleans are unpacked)."""
    array = batch.column(column)
    offsets = array.offsets.to_numpy()
    values = array.values.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type.value_type))
    return [values[a:b] for a, b in pairwise(offsets)]


def merge(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns one batch of all rows, in order of step, prompt and sample.

    Raises ValueError if two rows have the same identity, or the schemas differ.
    """
    batches = list(batches)
    metadata = batches[0].schema.metadata
    table = pa.Table.from_batches([b.replace_schema_metadata(metadata) for b in batches])
    order = [("step", "ascending"), ("prompt_index", "ascending"), ("sample", "ascending")]
    merged = table.sort_by(order).combine_chunks().to_batches()[0]
    identity = list(
        zip(*(merged.column(name).to_pylist() for name in ("step", "prompt_index", "sample")))
    )
    if len(set(identity)) != len(identity):
        raise ValueError("two trajectories of one step have the same prompt and sample")
    return merged


def with_columns(batch: pa.RecordBatch, columns: Mapping[str, Sequence]) -> pa.RecordBatch:
    """Returns the batch with some columns replaced; the others are shared, not copied."""
    arrays = [
        pa.array([_plain(v) for v in columns[f.name]], type=f.type)
        if f.name in columns
        else batch.column(f.name)
        for f in batch.schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def digest(batch: pa.RecordBatch) -> str:
    """Returns the SHA-256 over the values of all columns but the volatile ones: equal rows, equal digest.

    A column without any value is left out, so a column that a later version adds changes no digest.
    """
    out = hashlib.sha256()
    for field in batch.schema:
        column = batch.column(field.name)
        if field.name in VOLATILE or column.null_count == len(column):
            continue
        out.update(f"{field.name}:{field.type}:{len(column)}".encode())
        if pa.types.is_list(field.type) and not pa.types.is_struct(field.type.value_type):
            values = lists(batch, field.name)
            nulls = column.is_null().to_pylist()
            lengths = [-1 if null else len(v) for v, null in zip(values, nulls)]
            out.update(np.array(lengths, np.int64).tobytes())
            for v in values:
                out.update(np.ascontiguousarray(v).tobytes())
        else:
            for value in column.to_pylist():
                out.update(repr(value).encode() + b"\0")
    return out.hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, StopReason):
        return str(value)
    if isinstance(value, list) and value and isinstance(value[0], Span):
        return [to_builtins(span) for span in value]
    return value
