"""Random micro-batches of judged answers, and the preference losses of them.

Shapes: B rows, T tokens in each.
"""

import mlx.core as mx
import numpy as np

from policies.objectives.answers import Answers
from policies.objectives.preference import dpo, ipo, kto, orpo, simpo

LOSSES = {"dpo": dpo, "ipo": ipo, "simpo": simpo, "orpo": orpo, "kto": kto}


def micro_batch(generator, pairs=None):
    """Shuffled pairs, mismatched rows, half a pair and filling; not a number off the cover."""
    pairs, tokens = pairs or generator.integers(1, 4), generator.integers(1, 8)
    label = np.array([1, -1] * pairs + [0, 0, generator.choice([1, -1]), 0])
    pair = np.array([*np.repeat(generator.permutation(50)[:pairs], 2), 1, 60, 61, 61])
    covered = generator.random((len(label), tokens)) < 0.7
    covered[np.arange(len(label)), generator.integers(0, tokens, len(label))] = True
    covered[-1] = False
    logprobs = -generator.exponential(generator.choice([0.01, 1, 3]), covered.shape)
    reference = logprobs + generator.normal(0, generator.choice([0.01, 0.3, 1]), covered.shape)
    order = generator.permutation(len(label))
    arrays = [np.where(covered, a, np.nan).astype(np.float32)[order] for a in (logprobs, reference)]
    return [*arrays, covered[order], pair[order], label[order]]


def answers_of(batch):
    _, reference, covered, pair, label = map(mx.array, batch)
    return Answers(covered_BT=covered, pair_B=pair, label_B=label, reference_logprobs_BT=reference)


def computed(name, batch, settings):
    """The losses, the gradient of their sum and the metrics, in single precision."""

    def total(logprobs_BT):
        losses_B, metrics = LOSSES[name](logprobs_BT, answers_of(batch), **settings)
        return losses_B.sum(), losses_B, metrics

    (_, losses_B, metrics), gradient_BT = mx.value_and_grad(total)(mx.array(batch[0]))
    return np.array(losses_B), np.array(gradient_BT), {k: v.item() for k, v in metrics.items()}


VARIANTS = {
    "dpo": ("dpo", {}),
    "cdpo": ("dpo", {"label_smoothing": 0.1}),
    "robust": ("dpo", {"label_smoothing": 0.2, "robust": True}),
    "dpo_length": ("dpo", {"length_normalized": True, "label_smoothing": 0.05}),
    "dpo_nll": ("dpo", {"nll_weight": 0.7}),
    "ipo": ("ipo", {}),
    "ipo_sum": ("ipo", {"length_normalized": False, "nll_weight": 0.2}),
    "simpo": ("simpo", {"gamma": 1.375}),
    "simpo_nll": ("simpo", {"gamma": 0.5, "nll_weight": 0.3}),
    "orpo": ("orpo", {}),
    "kto": ("kto", {"baseline": 0.3}),
    "kto_weights": ("kto", {"desirable_weight": 1.33, "undesirable_weight": 0.5, "baseline": 0.0}),
}
