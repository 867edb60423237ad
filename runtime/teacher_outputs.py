"""Teacher outputs for one answer as arrays, in a batch's columns and in the teacher cache.

Shapes: R tokens of the answer, K kept ids of each.
"""

import numpy as np
import pyarrow as pa

from runtime.trajectory import lists, with_columns

TeacherOutputs = dict[str, np.ndarray]
"""Arrays [R] or [R, K] by the record's column."""


def usable(outputs: TeacherOutputs) -> np.ndarray:
    """Returns whether each token's outputs are usable, bool [R]: they are not if one is NaN."""
    if "teacher_logprobs" in outputs:
        return np.isfinite(outputs["teacher_logprobs"])
    return np.isfinite(outputs["teacher_id_logprobs"].sum(axis=-1))


def entry(outputs: TeacherOutputs) -> pa.RecordBatch:
    """Returns the outputs as a batch for the teacher cache, with one row for each token."""
    columns = {}
    for name, values in outputs.items():
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        columns[name] = (
            pa.FixedSizeListArray.from_arrays(array, values.shape[1]) if values.ndim > 1 else array
        )
    return pa.RecordBatch.from_pydict(columns)


def from_entry(entry: pa.RecordBatch) -> TeacherOutputs:
    """Returns the outputs from which `entry` was made."""
    outputs = {}
    for field in entry.schema:
        column = entry[field.name]
        if pa.types.is_fixed_size_list(field.type):
            outputs[field.name] = column.values.to_numpy().reshape(len(column), -1)
        else:
            outputs[field.name] = column.to_numpy()
    return outputs


def with_teacher_outputs(
    batch: pa.RecordBatch,
    outputs: dict[int, TeacherOutputs],
    tokens: list[np.ndarray],
    positions: list[np.ndarray],
) -> pa.RecordBatch:
    """Returns the batch with the teacher outputs of the rows in `outputs`, by number of the row.

    Other rows keep theirs. `tokens` and `positions` are the tokens of each row, and its answer's positions.
    """
    names = {name for of_row in outputs.values() for name in of_row}
    columns = {name: _present(batch, name) for name in names}
    for i, of_row in outputs.items():
        for name, values in of_row.items():
            if name == "teacher_logprobs":
                whole = np.zeros(len(tokens[i]), np.float32)
                whole[positions[i]] = values
                columns[name][i] = whole
            else:
                columns[name][i] = np.ascontiguousarray(values).reshape(-1)
    return with_columns(batch, columns)


def _present(batch: pa.RecordBatch, name: str) -> list[np.ndarray | None]:
    """Returns the outputs in the batch's column; None for a row without."""
    valid = batch[name].is_valid().to_pylist()
    return [values if there else None for values, there in zip(lists(batch, name), valid)]
