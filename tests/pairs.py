"""Pairwise coverage: few cases in which any two values of two different settings still meet.

`parametrize(("kind", "chunk", "dtype"), pairs_first(KINDS, CHUNKS, DTYPES))` takes the place of three stacked
marks. Most mistakes need one or two settings to show, so the rest of the product is for `make soak`.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Row = tuple[int, ...]
"""One case: the index of a value on each axis."""


def pairwise(
    *axes: Sequence[Any], possible: Callable[..., bool] = lambda *values: True
) -> list[tuple[Any, ...]]:
    """Returns cases, one value of each axis in each, that contain every pair of values of two axes.

    Only cases for which `possible` is true are made, and a pair that is in none of those is left out.
    The same axes give the same cases in the same order: each is the first that adds the most pairs.
    """

    def values(row: Row) -> tuple[Any, ...]:
        return tuple(axis[index] for axis, index in zip(axes, row))

    rows = [row for row in product(*(range(len(axis)) for axis in axes)) if possible(*values(row))]
    pending = {pair for row in rows for pair in pairs(row)}
    cases = []
    while pending:
        best = max(rows, key=lambda row: sum(pair in pending for pair in pairs(row)))
        pending -= set(pairs(best))
        cases.append(values(best))
    return cases


def pairs_first(*axes: Sequence[Any]) -> list[Any]:
    """Returns the product of the axes, for parametrize: the cases of `pairwise`, then the rest as soaks."""
    cases = pairwise(*axes)
    rest = [case for case in product(*axes) if case not in cases]
    return [*cases, *(pytest.param(*case, marks=pytest.mark.soak) for case in rest)]


def pairs(row: Row) -> list[tuple[tuple[int, int], ...]]:
    """Returns every two (axis, index) of a row; of a single axis, each alone."""
    return list(combinations(enumerate(row), min(2, len(row))))
