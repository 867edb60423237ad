"""Checks that sigma and the step are not lost in the rounding of the model's weights.

A bfloat16 weight of 1 does not change if 1e-3 is added. This depends on the weight's size, so it is
measured: the share of a tensor's elements that are the same number with and without the step.
"""

import math
from collections.abc import Iterator, Mapping

import mlx.core as mx

from configs.perturbations import RANK_SPREAD, Generation, PlainStep
from policies.arrays import Arrays, number
from policies.evolution.perturbation import Perturbation

MOST_LOST = 0.5
"""Largest share of a tensor's elements that may be lost."""
SAMPLE = 1 << 16
"""Number of elements that are measured in each tensor, evenly spread."""


def lost_share(weight: mx.array, step: float, dtype: mx.Dtype) -> float:
    """Returns the share of elements that ±step does not change; an element that one sign changes is half."""
    flat_N = weight.reshape(-1)[:: max(1, weight.size // SAMPLE)].astype(mx.float32)
    here_N = flat_N.astype(dtype)
    same = [((flat_N + signed).astype(dtype) == here_N).mean() for signed in (step, -step)]
    return number(same[0] + same[1]) / 2


def problems(
    es: Generation,
    perturbation: Perturbation,
    master: Arrays,
    dtypes: Mapping[str, mx.Dtype],
    learning_rate: float,
) -> Iterator[str]:
    """Yields a sentence for sigma, and one for the step size, if a tensor would lose most of it.

    Sigma is compared with the weights that a member computes with. Low-rank noise is lost in the rounding
    of a product with these weights, which has the same relative size. The step is compared with the master.
    """
    yield from _lost("algorithm.sigma", es.sigma, es.sigma, master, dtypes)
    float32 = dict.fromkeys(perturbation.shapes, mx.float32)
    if isinstance(es.update, PlainStep):
        key, value = "algorithm.update.alpha", es.update.alpha
    else:
        key, value = "optimizer.learning_rate", learning_rate
    yield from _lost(key, value, expected_move(es, learning_rate), master, float32)


def expected_move(es: Generation, learning_rate: float) -> float:
    """Returns the root mean square of one step's change of a weight if the fitness is noise."""
    if not isinstance(es.update, PlainStep):
        return learning_rate
    spread = RANK_SPREAD if es.shaping == "centered_ranks" else 1.0
    return es.update.alpha * spread / math.sqrt(es.population)


def _lost(
    key: str, value: float, step: float, weights: Arrays, dtypes: Mapping[str, mx.Dtype]
) -> Iterator[str]:
    shares = {name: lost_share(weights[name], step, dtype) for name, dtype in dtypes.items()}
    worst = max(shares, key=shares.__getitem__)
    if shares[worst] <= MOST_LOST:
        return
    needed = step
    while lost_share(weights[worst], needed, dtypes[worst]) > MOST_LOST:
        needed *= 1.25
    dtype = str(dtypes[worst]).rpartition(".")[2]
    sentence = (
        f"{key} = {value:g} is lost in {dtype}: {shares[worst]:.0%} of {worst} would not change by it; "
        f"needs at least {value * needed / step:.1g}"
    )
    if weights[worst].ndim == 1 and dtype != "float32":
        sentence += ", or algorithm.perturbation.vectors = false"
    yield sentence
