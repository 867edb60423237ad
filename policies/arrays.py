"""Named arrays: the parameters of a network, flat, by dotted name."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

Arrays = dict[str, mx.array]
"""Arrays by dotted name, such as {"model.layers.0.mlp.up_proj.weight": array}."""


def flat(tree: Any) -> Arrays:
    """Returns the arrays of a tree by dotted name, sorted."""
    leaves: Any = tree_flatten(tree)
    return dict(sorted(leaves))


def unflat(arrays: Arrays) -> Any:
    """Returns the tree of arrays by dotted name, as a network's `update` takes it."""
    return tree_unflatten(list(arrays.items()))


def number(scalar: mx.array) -> float:
    """Returns the value of an array of one real element."""
    return float(scalar.item())  # type: ignore[arg-type]
