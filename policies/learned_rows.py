"""Turns an annotated batch into the rows that the loss uses.

A row is trained on if its annotation gives any of its tokens a weight in any term, whatever the algorithm is.
The targets of a row are its sampled tokens, or the tokens of an answer from data.

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
    """A step's rows, with the group, teacher and number of each."""

    rows: list[Row]
    groups: list[int]
    """The prompt of each row; a group is never split over several updates."""
    teachers: list[str]
    """The teacher that the learner's process runs on each row; "" for none."""
    numbers: list[int]
    """Positions of these rows in the batch."""


def learned_rows(batch: pa.RecordBatch, terms: Sequence[Term], *, hosted: bool) -> LearnedRows:
    """Returns the rows that are trained on, in the batch's order.

    `hosted` is True if the learner's process runs the teachers. Raises ValueError for a weight of a term that
    is not among `terms`, since it would be dropped silently, and for a term whose weight is no column of the
    record.
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
                unit=_unit(terms, pair, prompts[i]),
                preference=0 if preference is None else preference,
            )
        )
        found.groups.append(prompts[i])
        found.numbers.append(i)
        found.teachers.append(teachers[i] or "" if hosted else "")
    return found


def _unit(terms: Sequence[Term], pair: int | None, prompt: int) -> int | None:
    """Returns the number that rows share which must not be cut apart; None for a row that stands alone."""
    units = {term.unit for term in terms}
    if "group" in units:
        return prompt
    return pair if "pair" in units else None


def _check(batch: pa.RecordBatch, terms: Sequence[Term]) -> None:
    for term in terms:
        if term.weight not in WEIGHTS:
            raise ValueError(
                f"the term {type(term).__name__} needs one of the weights {', '.join(WEIGHTS)}, "
                f"got {term.weight}"
            )
    used = {term.weight for term in terms}
    for name in WEIGHTS:
        # `flatten` gives the slice's own values; `values` would give those of the whole buffer.
        if name not in used and batch[name].flatten().to_numpy().any():
            raise ValueError(f"the record has {name}s, but no loss term uses them")


def _top_k(batch: pa.RecordBatch, i: int) -> dict[str, np.ndarray]:
    """Returns the teacher's likeliest ids for one row, their log-probabilities [R, K], and the tail [R]."""
    ids, logprobs, tail = (batch[name][i].values.to_numpy() for name in TEACHER_TOP_K)
    shape = (len(tail), -1)
    return {
        "teacher_ids": ids.reshape(shape),
        "teacher_id_logprobs": logprobs.reshape(shape),
        "teacher_tail": tail,
    }
