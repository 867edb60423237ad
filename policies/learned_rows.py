"""From an annotated batch to the rows that a loss looks at.

A row is trained on if its annotation gives any of its tokens a weight in any term; no algorithm's name
decides that. The learner's own tokens are those that were sampled, or the answers of data.

Shapes: R tokens of one trajectory's answer, K kept ids of a teacher.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from msgspec import Struct

from policies.batch import Row
from policies.terms import Term
from runtime.trajectory import ANNOTATION, answer_positions, lists

WEIGHTS = tuple(name for name in ANNOTATION if name.endswith("_weight"))
TEACHER_TOP_K = ("teacher_ids", "teacher_id_logprobs", "teacher_tail")


class LearnedRows(Struct, frozen=True):
    """A step's rows, with what stands beside each."""

    rows: list[Row]
    groups: list[int]
    """The prompt of each row: updates share out whole groups."""
    teachers: list[str]
    """The teacher that the learner's process asks about each row; "" for none."""
    numbers: list[int]
    """Which rows of the batch these are."""


def learned_rows(batch: pa.RecordBatch, terms: Sequence[Term], *, hosted: bool) -> LearnedRows:
    """Returns the rows that are trained on, in the batch's order; `hosted` if teachers are asked here.

    Raises ValueError for a weight in a term that is not among `terms`, which would be dropped silently, and
    for a term whose weight is no column of the record.
    """
    _check(batch, terms)
    tokens, logprobs = lists(batch, "tokens"), lists(batch, "logprobs")
    positions = answer_positions(batch)
    known = {name: batch[name].is_valid().to_pylist() for name in (*ANNOTATION, "teacher_ids")}
    annotated = {name: lists(batch, name) for name in ANNOTATION}
    names = ("prompt_index", "teacher", "pair", "preference", "step")
    prompts, teachers, pairs, preferences, steps = (batch[name].to_pylist() for name in names)
    versions = lists(batch, "weights_version")
    found = LearnedRows([], [], [], [])
    for i, where in enumerate(positions):
        columns = {
            name: annotated[name][i][where] if known[name][i] else np.zeros(len(where), np.float32)
            for name in ("token_advantage", *(term.weight for term in terms))
        }
        if not any(columns[term.weight].any() for term in terms):
            continue
        columns["behaviour"] = logprobs[i][where]
        columns["fresh"] = (versions[i][where] == steps[i] - 1).astype(np.float32)
        if known["teacher_ids"][i]:
            columns |= _top_k(batch, i)
        pair, preference = pairs[i], preferences[i]
        found.rows.append(
            Row(
                tokens[i],
                where,
                columns,
                unit=pair,
                preference=0 if preference is None else preference,
            )
        )
        found.groups.append(prompts[i])
        found.numbers.append(i)
        found.teachers.append(teachers[i] or "" if hosted else "")
    return found


def _check(batch: pa.RecordBatch, terms: Sequence[Term]) -> None:
    for term in terms:
        if term.weight not in WEIGHTS:
            raise ValueError(
                f"the term {type(term).__name__} needs one of the weights {', '.join(WEIGHTS)}, "
                f"got {term.weight}"
            )
    looked_at = {term.weight for term in terms}
    for name in WEIGHTS:
        # `flatten` leaves out what a slice shares memory with; `values` would not.
        if name not in looked_at and batch[name].flatten().to_numpy().any():
            raise ValueError(f"the record has {name}s, but no loss term looks at them")


def _top_k(batch: pa.RecordBatch, i: int) -> dict[str, np.ndarray]:
    """Returns a teacher's likeliest ids of one row and their log-probabilities [R, K], and the tail [R]."""
    ids, logprobs, tail = (batch[name][i].values.to_numpy() for name in TEACHER_TOP_K)
    shape = (len(tail), -1)
    return {
        "teacher_ids": ids.reshape(shape),
        "teacher_id_logprobs": logprobs.reshape(shape),
        "teacher_tail": tail,
    }
