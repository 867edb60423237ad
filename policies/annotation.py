"""The annotation of a batch: columns with each token's advantage and its weight in each loss term.

    annotated = with_annotation(batch, cross_entropy_weight=constant(batch, {0: 1.0, 3: 0.5}))

Each column has one number for each token of a row, 0 for a token that is not learned, and is null for a row
that is not trained on. The learner knows nothing else of an algorithm.

Shapes: N rows, T tokens of one row.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from runtime.trajectory import ANNOTATION, answer_positions, with_columns

Column = list[np.ndarray | None]
"""One array [T] for each row, or None."""


def with_annotation(batch: pa.RecordBatch, **columns: Column) -> pa.RecordBatch:
    """Returns the batch with these annotation columns. Raises ValueError for an unknown column name."""
    if unknown := columns.keys() - set(ANNOTATION):
        raise ValueError(f"annotation has the columns {', '.join(ANNOTATION)}, got {unknown}")
    return with_columns(batch, columns)


def constant(batch: pa.RecordBatch, values: Mapping[int, float]) -> Column:
    """Returns a column that has one value on all answer tokens of a row, for each row in `values`."""
    return per_token(batch, {i: value for i, value in values.items()})


def per_token(batch: pa.RecordBatch, values: Mapping[int, float | np.ndarray]) -> Column:
    """Returns a column with values on the answer tokens of the rows in `values`.

    A row's value is one number for all its answer tokens, or an array with one for each.
    """
    lengths = np.diff(batch["tokens"].offsets.to_numpy())
    positions = answer_positions(batch)
    column: Column = [None] * batch.num_rows
    for i, value in values.items():
        tokens_T = np.zeros(lengths[i], np.float32)
        tokens_T[positions[i]] = value
        column[i] = tokens_T
    return column


def kept(batch: pa.RecordBatch) -> list[int]:
    """Returns the numbers of the rows that were not dropped."""
    return [i for i, reason in enumerate(batch["dropped"].to_pylist()) if reason is None]
