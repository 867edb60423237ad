"""The perturbed weights and their noise, which is made from a key when it is needed and never stored.

A matrix [m, n] gets E = A·Bᵀ/√r with factors of rank r (EGGROLL, 2511.16652), or noise in every
element. An embedding is a matrix like any other; if it is tied to the head, both have the same noise.
Norms and biases have no low rank, so low-rank noise leaves them unperturbed, as EGGROLL's reference does.
Each tensor's noise has a key of its own, so tensors of one shape do not share noise (in the seed code of
2509.24372 they do). Both members of an antithetic pair have the same noise.

All arithmetic that changes weights consists of single float32 sums and products in a fixed order, or of
sums that are exact in any order, so it has the same bits on every backend.

Shapes: P keys, R rank, M and N a matrix's sides.
"""

import re
from collections.abc import Mapping
from collections.abc import Sequence as Items

import mlx.core as mx
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from configs.perturbations import Generation, LowRank
from kernels.noise import Kind, noise
from policies.arrays import Arrays
from policies.policy import Policy
from runtime.errors import BadInput
from runtime.keys import derive, mix

BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)\.[^.]+$")
"""Matches a weight's name; the groups are the number of its block, and its module there."""
KEYS_AT_ONCE = 64
"""Number of keys whose factors are in memory at once in a sum over many keys."""


class Perturbation(Struct, frozen=True, kw_only=True):
    """The parameters by which a member's noise is made from its key."""

    sigma: float
    rank: int
    """Rank of the noise; 0 for full rank."""
    noise: Kind
    shapes: dict[str, tuple[int, ...]]
    """The weights that are perturbed, sorted by name."""

    @property
    def size(self) -> int:
        """Returns how many numbers are perturbed. The norm of a member's noise is about sigma·√size."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


class Member(Struct, frozen=True, array_like=True):
    """One perturbed model of a generation: centre + sign·sigma·E(key)."""

    key: int
    sign: int


class Term(Struct, frozen=True, array_like=True):
    """A key and the coefficient of its noise in an update; only terms are sent between processes."""

    key: int
    coefficient: float


def members(seed: int, generation: int, population: int, antithetic: bool) -> list[Member]:
    """Returns the members of a generation, in the order in which all results are combined.

    In antithetic pair p, member 2p has the sign + and 2p + 1 has −. Raises ValueError for half a pair.
    """
    if antithetic and population % 2:
        raise ValueError(f"antithetic pairs need an even population, got {population}")
    signs = (1, -1) if antithetic else (1,)
    keys = (derive(seed, "es", generation, pair) for pair in range(population // len(signs)))
    return [Member(key, sign) for key in keys for sign in signs]


def perturbation(es: Generation, policy: Policy) -> Perturbation:
    """Returns the perturbation of this model by the settings.

    Raises BadInput if the model has no such weights, or has a matrix that is smaller than the rank.
    """
    low = isinstance(es.perturbation, LowRank)
    rank = es.perturbation.rank if isinstance(es.perturbation, LowRank) else 0
    vectors = not isinstance(es.perturbation, LowRank) and es.perturbation.vectors
    trained = {name: weight.shape for name, weight in policy.trained().items()}
    chosen = chosen_names(trained, es.layers, es.modules, policy.layer_count())
    shapes = {n: trained[n] for n in chosen if len(trained[n]) > 1 or vectors}
    if not shapes:
        raise BadInput("algorithm.modules: none of the weights they name is a matrix")
    for name, shape in shapes.items():
        if low and len(shape) != 2:
            raise BadInput(f'algorithm.perturbation: {name} {list(shape)} needs "full_rank"')
        if rank > min(shape):
            raise BadInput(
                f"algorithm.perturbation.rank = {rank} needs to be at most the smaller side of every "
                f"matrix, got {name} {list(shape)}: leave it out by algorithm.modules or lower the rank"
            )
    return Perturbation(sigma=es.sigma, rank=rank, noise=es.noise, shapes=shapes)


def chosen_names(
    names: Items[str] | Mapping, layers: int, modules: Items[str], blocks: int
) -> list[str]:
    """Returns the sorted names of the weights in the last `layers` of `blocks` blocks.

    With -1 all blocks are chosen, and the weights outside of blocks too. With `modules` only weights of
    these modules are chosen. Raises BadInput for a module that is not in the chosen blocks.
    """
    chosen, found = [], set()
    for name in sorted(names):
        block = BLOCK.search(name)
        if not block:
            if layers < 0 and not modules:
                chosen.append(name)
            continue
        number, module = int(block[1]), block[2]
        if (layers < 0 or number >= blocks - layers) and (not modules or module in modules):
            chosen.append(name)
            found.add(module)
    if missing := sorted(set(modules) - found):
        raise BadInput(
            f"algorithm.modules: {missing[0]!r} is no trained module of the blocks chosen"
        )
    return chosen


# ── noise ────────────────────────────────────────────────────────────────────────────────────────


def factors(
    perturbation: Perturbation, name: str, keys_P: NDArray[np.uint64]
) -> tuple[mx.array, mx.array]:
    """Returns a matrix's factors A [P, R, M] and B [P, R, N] for each key: E = Σ_r A_r·B_rᵀ/√R."""
    rows, columns = perturbation.shapes[name]
    both = []
    for side, length in (("A", rows), ("B", columns)):
        values = noise(_keys_of(keys_P, name, side), perturbation.rank * length, perturbation.noise)
        both.append(values.reshape(len(keys_P), perturbation.rank, length))
    return both[0], both[1]


def combined(perturbation: Perturbation, name: str, terms: Items[Term]) -> mx.array:
    """Returns Σ coefficient·E(key) of one tensor, float32, evaluated.

    With ±1 noise and coefficients from `fitness.snapped`, the low-rank sum is one matrix product, which is
    exact: every partial sum is a multiple of one power of two and fits 24 bits.
    """
    shape = perturbation.shapes[name]
    total = mx.zeros(shape, mx.float32)
    for first in range(0, len(terms), KEYS_AT_ONCE):
        some = terms[first : first + KEYS_AT_ONCE]
        keys_P = np.array([term.key for term in some], np.uint64)
        coefficients_P = np.array([term.coefficient for term in some], np.float32)
        if not perturbation.rank:
            total = _add_full(total, perturbation, name, keys_P, coefficients_P)
        elif perturbation.noise == "rademacher":
            total = total + _exact_product(*factors(perturbation, name, keys_P), coefficients_P)
        else:
            total = _add_outer(total, *factors(perturbation, name, keys_P), coefficients_P)
        mx.eval(total)
    return total * perturbation.rank**-0.5 if perturbation.rank > 1 else total


def perturbed(
    perturbation: Perturbation, master: Arrays, member: Member, dtypes: Mapping[str, mx.Dtype]
) -> Arrays:
    """Returns a member's weights, which are rounded copies of master + sign·sigma·E.

    Only one tensor's noise is in memory at a time.
    """
    weights: Arrays = {}
    for name in perturbation.shapes:
        own_noise = combined(perturbation, name, [Term(member.key, 1.0)])
        whole = master[name] + own_noise * (member.sign * perturbation.sigma)
        weights[name] = whole.astype(dtypes[name])
        mx.eval(weights[name])
    return weights


def _keys_of(keys_P: NDArray[np.uint64], name: str, side: str) -> NDArray[np.uint64]:
    return mix(keys_P ^ np.uint64(derive(name, side)))


def _add_full(
    total: mx.array,
    perturbation: Perturbation,
    name: str,
    keys_P: NDArray[np.uint64],
    coefficients_P: NDArray[np.float32],
) -> mx.array:
    for key, coefficient in zip(_keys_of(keys_P, name, "E"), coefficients_P):
        values = noise(np.array([key]), total.size, perturbation.noise).reshape(total.shape)
        total = total + values * float(coefficient)
        mx.eval(total)  # otherwise the noise of all keys would be in memory at once
    return total


def _add_outer(
    total: mx.array, a_PRM: mx.array, b_PRN: mx.array, coefficients_P: NDArray[np.float32]
) -> mx.array:
    """Returns `total` with each term's outer products added one by one.

    A product of matrices would be faster, but its bits differ between BLAS libraries.
    """
    for p, coefficient in enumerate(coefficients_P):
        for r in range(a_PRM.shape[1]):
            total = total + (a_PRM[p, r] * float(coefficient))[:, None] * b_PRN[p, r]
        mx.eval(total)
    return total


def _exact_product(
    a_PRM: mx.array, b_PRN: mx.array, coefficients_P: NDArray[np.float32]
) -> mx.array:
    """Returns the sum of the terms' outer products, exactly, as a matrix product.

    The coefficients are split into two halves of 11 bits, so that a backend which computes float32 products
    in TF32 loses nothing either.
    """
    high_P = (coefficients_P.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    b_KN = b_PRN.reshape(-1, b_PRN.shape[-1])
    high, low = (
        (a_PRM * mx.array(half_P)[:, None, None]).reshape(-1, a_PRM.shape[-1]).T @ b_KN
        for half_P in (high_P, coefficients_P - high_P)
    )
    return high + low
