"""A population in one batch: rows share every base product, and each adds its own member's noise.

    x·(W + c·A·Bᵀ)ᵀ  =  x·Wᵀ  +  (c·x·B)·Aᵀ          c = sign·sigma/√r

A stand-in takes the place of each perturbed module, and the parameter tree stays as it is. For each row the
stand-in gathers the factors inside the product (`gather_mm`), so nothing is copied for a row, the cost does
not grow with the population, and a row's arithmetic does not depend on the other rows of the batch. The
factors of the members in the batch, and no others, are made when the batch changes.

Shapes: N rows, P keys in the batch, R rank.
"""

from collections.abc import Sequence as Items
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from policies.evolution.perturbation import Member, Perturbation, factors
from policies.policy import Policy
from runtime.errors import BadInput


class Population:
    """Puts members into one model for a `with` block.

    `rows(members_N)` sets the members of the next pass's rows, as indices of `members`; a `Decoder` that is
    given `rows` calls it itself. The noise must have low rank, and the model must hold the base.
    """

    def __init__(self, policy: Policy, perturbation: Perturbation, members: Items[Member]) -> None:
        if not perturbation.rank:
            raise ValueError("full-rank members cannot share a batch: use Centre.member_in")
        self._perturbation = perturbation
        keys = np.array([m.key for m in members], np.uint64)
        self._keys, self._key_of = np.unique(keys, return_inverse=True)
        scale = perturbation.sigma * perturbation.rank**-0.5
        self._scale = np.array([m.sign * scale for m in members], np.float32)
        self._stand_ins = _stand_ins(policy, perturbation, self)
        self._members_N = np.zeros(0, np.int64)
        self._table_keys = np.zeros(0, np.int64)
        self._table: dict[str, tuple[mx.array, mx.array]] = {}
        self._row_N: mx.array
        self._scale_N: mx.array

    def __enter__(self) -> Self:
        for parent, leaf, stand_in in self._stand_ins:
            object.__setattr__(parent, leaf, stand_in)
        return self

    def __exit__(self, *error: object) -> None:
        for parent, leaf, _ in self._stand_ins:
            object.__delattr__(parent, leaf)

    def rows(self, members_N: np.ndarray) -> None:
        """Sets the members of the next pass's rows, in this order."""
        if np.array_equal(members_N, self._members_N):
            return
        keys_N = self._key_of[members_N]
        wanted = np.unique(keys_N)
        if not np.isin(wanted, self._table_keys).all():
            self._fill_table(wanted)
        self._members_N = members_N.copy()
        self._row_N = mx.array(np.searchsorted(self._table_keys, keys_N).astype(np.uint32))
        self._scale_N = mx.array(self._scale[members_N])

    def _fill_table(self, keys: np.ndarray) -> None:
        self._table.clear()
        for name in self._perturbation.shapes:
            self._table[name] = factors(self._perturbation, name, self._keys[keys])
        mx.eval(self._table)
        self._table_keys = keys

    # ── noise for the stand-ins ──────────────────────────────────────────────────────────────────

    def through(self, name: str, x: mx.array, *, transposed: bool = False) -> mx.array:
        """Returns c·x·E of each row's member, or c·x·Eᵀ, float32 with a last axis of E's columns or rows.

        The rows are the first axis of `x`, or the second after one of length 1, as in the head.
        """
        first, second = self._table[name]
        if transposed:
            first, second = second, first
        x_NTD = x.reshape(self._row_N.size, -1, x.shape[-1])
        z_NTR = mx.gather_mm(x_NTD, first.swapaxes(1, 2), None, self._row_N)
        y_NTD = mx.gather_mm(z_NTR * self._scale_N[:, None, None], second, None, self._row_N)
        return y_NTD.reshape(*x.shape[:-1], y_NTD.shape[-1])

    def looked_up(self, name: str, tokens_NT: mx.array) -> mx.array:
        """Returns c·E[token] of each row's member, float32 [N, T, D]."""
        a_PRV, b_PRD = self._table[name]
        rank = mx.arange(a_PRV.shape[1])
        a_NTR = a_PRV[self._row_N[:, None, None], rank, tokens_NT[..., None]]
        return mx.gather_mm(a_NTR * self._scale_N[:, None, None], b_PRD, None, self._row_N)


class _StandIn:
    """Takes the place of a module: adds the noise to its output, and is otherwise like that module."""

    def __init__(self, module: Any, population: Any, name: str) -> None:
        self._module = module
        self._population = population
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Linear(_StandIn):
    def __call__(self, x: mx.array) -> mx.array:
        y = self._module(x)
        return (y + self._population.through(self._name, x, transposed=True)).astype(y.dtype)


class _Embedding(_StandIn):
    def __call__(self, tokens_NT: mx.array) -> mx.array:
        y = self._module(tokens_NT)
        return (y + self._population.looked_up(self._name, tokens_NT)).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        y = self._module.as_linear(x)
        return (y + self._population.through(self._name, x, transposed=True)).astype(y.dtype)


class _Adapter(_StandIn):
    """Takes the place of a LoRA module, x·a·b beside a frozen layer, and perturbs both factors.

    `name` is that of the module.
    """

    def __call__(self, x: mx.array) -> mx.array:
        y = self._module.linear(x)
        z = self._product(self._product(x, "lora_a"), "lora_b")
        return y + (self._module.scale * z).astype(x.dtype)

    def _product(self, x: mx.array, leaf: str) -> mx.array:
        return x @ self._module[leaf] + self._population.through(f"{self._name}.{leaf}", x)


def check_kinds(policy: Policy, perturbation: Perturbation) -> None:
    """Raises BadInput for a perturbed module of a kind that low-rank noise does not support."""
    _stand_ins(policy, perturbation, None)


def _stand_ins(
    policy: Policy, perturbation: Perturbation, population: Population | None
) -> list[tuple[nn.Module, str, _StandIn]]:
    """Returns (parent, attribute, stand-in) of each perturbed module. Raises BadInput for an unknown kind."""
    modules = dict(policy.model.named_modules())
    paths: dict[str, list[str]] = {}
    for name in perturbation.shapes:
        path, _, leaf = name.rpartition(".")
        paths.setdefault(path, []).append(leaf)
    found = []
    for path, leaves in paths.items():
        module = modules[path]
        parent, _, attribute = path.rpartition(".")
        if leaves == ["weight"] and isinstance(module, nn.Linear):
            stand_in = _Linear(module, population, f"{path}.weight")
        elif leaves == ["weight"] and isinstance(module, nn.Embedding):
            stand_in = _Embedding(module, population, f"{path}.weight")
        elif leaves == ["lora_a", "lora_b"] and "linear" in module:
            stand_in = _Adapter(module, population, path)
        else:
            raise BadInput(
                f'algorithm.perturbation: {path} is a {type(module).__name__}, it needs "full_rank"'
            )
        found.append((modules[parent], attribute, stand_in))
    return found
