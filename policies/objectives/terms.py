"""The loss of an optimiser step: a sum of terms over annotated tokens, the same for every algorithm.

A record has each token's weight in each term (as in PrimeIntellect's prime-rl), and each term is divided by
its own counts over the whole optimiser step. So losses, gradients and metrics of micro-batches add up to
those of the step, however it is cut:

    shares = [loss(outputs, batch, terms, counts) for outputs, batch in micro_batches]
    report = summary(add_up([to_floats(metrics) for _, metrics in shares]))

A term's arithmetic is looked up by the term's class; `computes` adds a term from elsewhere.

Shapes: B sequences, T tokens in each.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import mlx.core as mx
import numpy as np

from policies.objectives.answers import count_units
from policies.objectives.batch import Batch, Metrics, Outputs, needed
from policies.objectives.divergence import weighted
from policies.objectives.normalise import Denominators, denominators, token_mean
from policies.objectives.policy_gradient_term import policy_gradient
from policies.objectives.preference_term import preference
from policies.objectives.supervised import cross_entropy
from policies.terms import CrossEntropy, Divergence, PolicyGradient, Preference, Term

Counts = Mapping[str, Denominators]
"""Each term's denominators, counts of one whole optimiser step, by the term's weight column."""
Computed = Callable[[Term, Outputs, Batch, Denominators], tuple[mx.array, Metrics]]
"""A term's arithmetic: its share of the step's loss, and sums for the report."""

NOT_MEANS = {"ce_nats", "divergence_nats", "mismatch_abs"}
"""Names of sums that are not divided by the policy gradient's number of tokens."""


def loss(
    outputs: Outputs, batch: Batch, terms: Sequence[Term], counts: Counts
) -> tuple[mx.array, Metrics]:
    """Returns this micro-batch's share of the step's loss, and sums for the report.

    The metrics are constants; `add_up` and `summary` read them. Raises ValueError if an input of a term is
    missing, or if the batch has weights for a term that is not in the list; LookupError for a kind of term
    without arithmetic.
    """
    if unused := batch.weights.keys() - {term.weight for term in terms}:
        raise ValueError(f"no loss term uses {', '.join(sorted(unused))}: it would be lost")
    total, metrics = mx.array(0.0), {}
    for term in terms:
        share, more = _arithmetic(term)(term, outputs, batch, _counted(term, counts))
        total, metrics = total + share, metrics | more
    metrics = {k: mx.stop_gradient(v.astype(mx.float32)) for k, v in metrics.items()}
    return total, metrics | {"loss": mx.stop_gradient(total)}


def computes(kind: type[Term], arithmetic: Computed) -> None:
    """Registers a function as the arithmetic of a kind of term."""
    _COMPUTED[kind] = arithmetic


def counts_of(
    terms: Sequence[Term],
    lengths: Mapping[str, np.ndarray],
    limit_tokens: int,
    units_N: np.ndarray,
    preference_N: np.ndarray,
) -> Counts:
    """Returns each term's denominators: counts of the tokens, sequences or units of one whole update.

    `lengths` [N] are the numbers of tokens of the update's rows in each weight column, `units_N` the pair of
    each row, and `preference_N` the row's side in the pair.
    """
    counts = {}
    for term in terms:
        counted = getattr(term, "counted", term.weight)
        if isinstance(term, Preference):
            covered_N = lengths[term.weight]
            units = count_units(units_N, preference_N, covered_N, paired=term.paired)
            counts[term.weight] = Denominators(float(covered_N.sum()), float(max(units, 1)), 1.0)
            continue
        chosen = counted if lengths[counted].any() else term.weight
        counts[term.weight] = denominators(lengths[chosen], limit_tokens)
    return counts


def add_up(shares: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns the metrics of several micro-batches as those of one: sums, and the largest of ``max_…``."""
    total: dict[str, float] = {}
    for share in shares:
        for name, value in share.items():
            if name not in total:
                total[name] = value
            else:
                total[name] = max(total[name], value) if _largest(name) else total[name] + value
    return total


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Returns evaluated metrics as Python floats."""
    mx.eval(metrics)
    return {name: float(np.asarray(value)) for name, value in metrics.items()}


def summary(sums: Mapping[str, float]) -> dict[str, float]:
    """Returns the report of a step: means over the tokens of each term, in nats where they are log-ratios.

    `mismatch_k3` estimates KL(μ‖π) between sampler and learner, `max_mismatch` is the largest difference
    of a token's log-probability, `mean_mismatch` the mean one of fresh tokens.
    `kl_reference` estimates KL(π‖ref). `ess` is the effective share of the
    samples under the importance weights before truncation. `bounded` and `corrected` are the shares of
    tokens at which the surrogate's bound and the correction's bound took effect. `divergence_nats` is the
    mean over tokens with a usable teacher output, `unusable_tokens` the number of the others. A metric that
    a term reports for each unit, such as a preference's accuracy, is a mean over the units.
    """
    report = {name: sums[name] for name in sums if _largest(name) or name.endswith("loss")}
    report |= {name: sums[name] for name in sums if name.endswith("tokens")}
    if sums.get("ce_tokens"):
        report["ce_nats"] = sums["ce_nats"] / sums["ce_tokens"]
    if sums.get("divergence_tokens"):
        report["divergence_nats"] = sums["divergence_nats"] / sums["divergence_tokens"]
    if sums.get("fresh_tokens"):
        report["mean_mismatch"] = sums["mismatch_abs"] / sums["fresh_tokens"]
    for name in sums:
        kind, _, metric = name.partition(":")
        if metric and sums.get(f"{kind}_units"):
            report[metric] = sums[name] / sums[f"{kind}_units"]
    tokens = sums.get("pg_tokens", 0.0)
    if tokens:
        of_units = {name for name in sums if ":" in name or name.endswith("_units")}
        means = sums.keys() - report.keys() - NOT_MEANS - WEIGHT_SUMS - of_units
        report |= {name: sums[name] / tokens for name in means}
        squares = max(sums["weight_squared"], math.ulp(0))
        report["ess"] = sums["weight"] ** 2 / (tokens * squares)
    return dict(sorted(report.items()))


WEIGHT_SUMS = {"weight", "weight_squared"}


def _cross_entropy(
    term: Term, outputs: Outputs, batch: Batch, counts: Denominators
) -> tuple[mx.array, Metrics]:
    ce_weight_BT = needed(batch.weights.get(term.weight), "the cross-entropy", "weights")
    share = token_mean(cross_entropy(outputs.logprobs_BT, ce_weight_BT), counts)
    covered_BT = (ce_weight_BT != 0).astype(mx.float32)
    metrics = {"ce_loss": share, "ce_tokens": covered_BT.sum()}
    nats = cross_entropy(outputs.logprobs_BT, covered_BT).sum()
    return share, metrics | {"ce_nats": nats}


def _divergence(
    term: Term, outputs: Outputs, batch: Batch, counts: Denominators
) -> tuple[mx.array, Metrics]:
    signal = needed(outputs.signal, "the divergence", "a teacher's distributions")
    share = token_mean(weighted(signal, signal.weight_BT), counts)
    covered_BT = (signal.weight_BT != 0).astype(mx.float32)
    usable_BT = covered_BT * signal.usable_BT
    metrics = {"divergence_loss": share, "divergence_tokens": usable_BT.sum()}
    metrics["divergence_nats"] = weighted(signal, covered_BT).sum()
    return share, metrics | {"unusable_tokens": covered_BT.sum() - usable_BT.sum()}


def _arithmetic(term: Term) -> Computed:
    if type(term) not in _COMPUTED:
        raise LookupError(
            f"the term {type(term).__name__} has no arithmetic: "
            "it needs a function, registered by policies.objectives.terms.computes"
        )
    return _COMPUTED[type(term)]


def _counted(term: Term, counts: Counts) -> Denominators:
    if term.weight not in counts:
        raise ValueError(
            f"the term {type(term).__name__} needs the step's counts, got those of "
            f"{', '.join(counts) or 'no term'}"
        )
    return counts[term.weight]


def _largest(name: str) -> bool:
    return name.startswith("max_")


_COMPUTED: dict[type[Term], Computed] = {
    PolicyGradient: policy_gradient,
    CrossEntropy: _cross_entropy,
    Divergence: _divergence,
    Preference: preference,
}
