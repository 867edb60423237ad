"""The record that every algorithm shares: what was seen, what was sampled, how likely, how good.

One Arrow schema. A batch of trajectories is one `pyarrow.RecordBatch`: it goes into Ray's object
store once and is read there without a copy, and the same batch is appended to the run's log.
Token-level columns are lists of equal length T per row; T counts prompt and completion.

Token-preserving: what was sampled is what is trained on, id for id. The stop token and its
log-probability are kept. Null is not zero: an unscored reward, an unassigned advantage are null.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise

import numpy as np
import pyarrow as pa
from msgspec import Struct

SCHEMA_VERSION = 1


class StopReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """A stop token was sampled."""
    LENGTH = "length"
    """The limit of new tokens was reached: the answer is truncated."""
    INTERRUPTED = "interrupted"
    """Sampling was interrupted; the sequence can be continued."""
    DATA = "data"
    """Not sampled: a row of a data set."""


SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("prompt_index", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("tokens", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("sampled", pa.list_(pa.field("item", pa.bool_(), nullable=False)), nullable=False),
        pa.field(
            "logprobs", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False
        ),
        pa.field(
            "weights_version",
            pa.list_(pa.field("item", pa.int32(), nullable=False)),
            nullable=False,
        ),
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
        pa.field("seconds", pa.float32(), nullable=False),
    ],
    metadata={"pippin.schema": str(SCHEMA_VERSION)},
)
"""Columns. `tokens`, `sampled`, `logprobs` and `weights_version` have T items in each row:
`sampled` is True where the policy chose the token, `logprobs` is its float32 log-probability under
the distribution that was really sampled from (temperature included; 0 elsewhere), `weights_version`
the weights that chose it (-1 elsewhere). The first `prompt_tokens` are the prompt. `text` is the
completion as a verifier reads it, never encoded again. `reward_parts` is a JSON object, `failure` the
kind of a reward that could not be had, `dropped` why a trajectory is not trained on, `seconds` the
wall-clock from request to end."""

VOLATILE = frozenset({"seconds"})
"""Columns that two equal runs need not share: not part of a digest."""


class Trajectory(Struct, frozen=True, kw_only=True):
    """One row, as Python values: for making a batch and for looking at one."""

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

    def __post_init__(self) -> None:
        lengths = {
            "tokens": len(self.tokens),
            "sampled": len(self.sampled),
            "logprobs": len(self.logprobs),
            "weights_version": len(self.weights_version),
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a trajectory's token columns need one length, got {lengths}")
        if not 0 < self.prompt_tokens <= len(self.tokens):
            raise ValueError(
                f"a trajectory's prompt needs 1 to {len(self.tokens)} tokens, got {self.prompt_tokens}"
            )


def to_batch(rows: Sequence[Trajectory], metadata: dict[str, str] | None = None) -> pa.RecordBatch:
    """A batch of the rows in order; `metadata` (tokenizer fingerprint, …) joins the schema's."""
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
    """The rows of a batch as Python values."""
    return [
        Trajectory(**{**row, "stop_reason": StopReason(row["stop_reason"])})
        for row in batch.to_pylist()
    ]


def lists(batch: pa.RecordBatch, column: str) -> list[np.ndarray]:
    """A token column as one numpy view per row: no copy of the values (booleans are unpacked)."""
    array = batch.column(column)
    offsets = array.offsets.to_numpy()
    values = array.values.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type.value_type))
    return [values[a:b] for a, b in pairwise(offsets)]


def merge(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all rows, in order of step, prompt and sample, whoever sampled them.

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
    """The batch with some columns replaced; the others are shared, not copied."""
    arrays = [
        pa.array([_plain(v) for v in columns[f.name]], type=f.type)
        if f.name in columns
        else batch.column(f.name)
        for f in batch.schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def digest(batch: pa.RecordBatch) -> str:
    """SHA-256 over the values of every column but the volatile ones: equal rows, equal digest."""
    out = hashlib.sha256()
    for field in batch.schema:
        if field.name in VOLATILE:
            continue
        column = batch.column(field.name)
        out.update(f"{field.name}:{field.type}:{len(column)}".encode())
        if pa.types.is_list(field.type):
            values = lists(batch, field.name)
            out.update(np.array([len(v) for v in values], np.int64).tobytes())
            for v in values:
                out.update(np.ascontiguousarray(v).tobytes())
        else:
            for value in column.to_pylist():
                out.update(repr(value).encode() + b"\0")
    return out.hexdigest()


def _plain(value: object) -> object:
    return str(value) if isinstance(value, StopReason) else value
