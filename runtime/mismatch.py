"""Judges how far the learner's log-probabilities are from those that the sampler kept.

With the same weights both should say the same. Kernels that depend on the batch, half precision or an
architecture's padding can part them, and then the policy gradient is that of another policy.
"""

import math
from collections.abc import Mapping

from configs.run import Mismatch
from runtime.errors import RunFailed

MEAN = "mismatch_mean"
ADVICE = (
    'try model.dtype = "float32" for 16-bit weights, and `pippin doctor MODEL`, which measures it apart from '
    "the run"
)


def check_mismatch(mean_nats: float | None, limits: Mismatch, update: int) -> None:
    """Raises RunFailed if sampler and learner are too far apart before an update, or not comparable.

    `mean_nats` is None where no token was sampled by the learner's own weights: nothing is judged then.
    """
    if mean_nats is None:
        return
    if not math.isfinite(mean_nats):
        raise RunFailed(
            f"the log-probabilities of sampled tokens are not finite before update {update}: the model gives "
            "NaN or infinite logits, or gives a token that was sampled no probability; the weights before it "
            "are kept (a lower learning rate does not mend what went wrong in an earlier step: go back to a "
            "checkpoint before it; 16-bit weights may overflow, which model.dtype = "
            '"float32" avoids)'
        )
    if mean_nats >= limits.fail_nats:
        raise RunFailed(
            f"sampler and learner are {mean_nats:.3g} nats apart on average before update {update}, with the "
            f"same weights (mismatch.fail_nats = {limits.fail_nats:g}): it would learn from what another "
            f"policy did; the weights before it are kept ({ADVICE})"
        )


def mismatch_doubt(metrics: Mapping[str, float], limits: Mismatch) -> str:
    """Returns a sentence if a step's difference is worth a warning; else ""."""
    mean_nats = metrics.get(MEAN)
    if mean_nats is None or mean_nats < limits.warn_nats:
        return ""
    return (
        f"sampler and learner are {mean_nats:.3g} nats apart on average, with the same weights "
        f"(mismatch.warn_nats = {limits.warn_nats:g}): {ADVICE}"
    )
