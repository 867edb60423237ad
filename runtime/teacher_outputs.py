"""What a teacher said of one answer, as arrays: in a batch's columns, and in the teacher cache.

Shapes: R tokens of the answer, K kept ids of each.
"""

import numpy as np
import pyarrow as pa

from runtime.trajectory import lists, with_columns

TeacherOutputs = dict[str, np.ndarray]
"""By the record's column: [R], or [R, K]."""


def usable(said: TeacherOutputs) -> np.ndarray:
    """[R] whether anything can be learned of a token: a teacher's NaN says nothing."""
    if "teacher_logprobs" in said:
        return np.isfinite(said["teacher_logprobs"])
    return np.isfinite(said["teacher_id_logprobs"].sum(axis=-1))


def entry(said: TeacherOutputs) -> pa.RecordBatch:
    """As a batch of one row for each token."""
    columns = {}
    for name, values in said.items():
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        columns[name] = (
            pa.FixedSizeListArray.from_arrays(array, values.shape[1]) if values.ndim > 1 else array
        )
    return pa.RecordBatch.from_pydict(columns)


def from_entry(entry: pa.RecordBatch) -> TeacherOutputs:
    """What `entry` was made of."""
    said = {}
    for field in entry.schema:
        column = entry[field.name]
        if pa.types.is_fixed_size_list(field.type):
            said[field.name] = column.values.to_numpy().reshape(len(column), -1)
        else:
            said[field.name] = column.to_numpy()
    return said


def with_teacher_outputs(
    batch: pa.RecordBatch,
    said: dict[int, TeacherOutputs],
    tokens: list[np.ndarray],
    positions: list[np.ndarray],
) -> pa.RecordBatch:
    """The batch with what is said of some of its rows, by number; of the others as it was."""
    names = {name for found in said.values() for name in found}
    columns = {name: _present(batch, name) for name in names}
    for i, found in said.items():
        for name, values in found.items():
            if name == "teacher_logprobs":
                whole = np.zeros(len(tokens[i]), np.float32)
                whole[positions[i]] = values
                columns[name][i] = whole
            else:
                columns[name][i] = np.ascontiguousarray(values).reshape(-1)
    return with_columns(batch, columns)


def _present(batch: pa.RecordBatch, name: str) -> list[np.ndarray | None]:
    """What other teachers said of their rows."""
    valid = batch[name].is_valid().to_pylist()
    return [values if there else None for values, there in zip(lists(batch, name), valid)]
