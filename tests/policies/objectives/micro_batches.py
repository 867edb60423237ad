"""What the tests of loss terms share: a small problem, and its micro-batches.

Shapes: B sequences, T tokens in each, V outcomes.
"""

import mlx.core as mx
import numpy as np
from msgspec.structs import asdict, replace

from policies.objectives.batch import Batch, Outputs
from policies.objectives.normalise import denominators
from policies.objectives.terms import Counts, loss, to_floats
from policies.terms import CrossEntropy, Divergence, PolicyGradient, Preference, Term

PG, CE = PolicyGradient.weight, CrossEntropy.weight
LENGTHS = [2, 6, 4, 1]
B, T, V = 4, 6, 5


def problem(seed: int = 0, spread: float = 0.2):
    """Logits [B, T, V], targets and an annotated batch with two terms in it."""
    generator = np.random.default_rng(seed)
    logits = mx.array(generator.normal(size=(B, T, V)).astype(np.float32))
    targets = mx.array(generator.integers(0, V, (B, T)))
    sampled = (np.arange(T) < np.array(LENGTHS)[:, None]).astype(np.float32)
    now, _ = values(logits, targets)

    def near() -> mx.array:
        return now + mx.array(generator.normal(0, spread, (B, T)).astype(np.float32))

    batch = Batch(
        sampled_BT=mx.array(sampled),
        weights={PG: mx.array(sampled), CE: mx.array(sampled * 0.1)},
        advantages_BT=mx.array(generator.normal(size=(B, 1)).astype(np.float32) * sampled),
        behaviour_logprobs_BT=near(),
        old_logprobs_BT=near(),
        reference_logprobs_BT=near(),
    )
    return logits, targets, batch


def values(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    entropy = -(mx.exp(logprobs) * logprobs).sum(-1)
    return mx.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], entropy


def outputs(logits: mx.array, targets: mx.array) -> Outputs:
    logprobs, entropy = values(logits, targets)
    return Outputs(logprobs_BT=logprobs, entropy_BT=entropy)


def each(batch: Batch, change) -> Batch:
    """The batch with every array changed, the weights too."""
    arrays = {k: change(v) for k, v in asdict(batch).items() if isinstance(v, mx.array)}
    return replace(batch, **arrays, weights={name: change(w) for name, w in batch.weights.items()})


def rows(batch: Batch, part: slice) -> Batch:
    return each(batch, lambda array: array[part])


def only(batch: Batch, *names: str) -> Batch:
    return replace(batch, weights={name: batch.weights[name] for name in names})


def counts(lengths=LENGTHS) -> Counts:
    return {
        name: denominators(lengths, T) for name in (PG, CE, Divergence.weight, Preference.weight)
    }


def gradient(terms: list[Term], logits, targets, batch, step=None):
    def function(logits):
        return loss(outputs(logits, targets), batch, terms, step or counts())

    (total, metrics), slope = mx.value_and_grad(function)(logits)
    return total.item(), to_floats(metrics), np.array(slope)
