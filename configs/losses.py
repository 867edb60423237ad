"""Settings of the loss terms: surrogates, off-policy corrections, divergences, KL to the reference."""

from typing import Annotated, Literal

from msgspec import Meta

from configs.fields import Closed, NotNegative, Positive


class Clip(Closed, frozen=True, tag_field="name", tag="clip"):
    """PPO's clipped surrogate (Schulman 2017), DAPO's two bounds (Yu 2025), dual clip (Ye 2020)."""

    low: Annotated[float, Meta(gt=0, le=1)] = 0.2
    high: Positive = 0.28
    dual: Annotated[float, Meta(ge=0)] = 3.0
    """Bound of the loss for negative advantages, as a ratio above 1; 0 for none."""


class Cispo(Closed, frozen=True, tag_field="name", tag="cispo"):
    """−sg(min(ratio, max_ratio))·A·log π (MiniMax-M1, 2506.13585): no token loses its gradient."""

    max_ratio: Positive = 5.0
    """Absolute cap of the ratio; there is no lower bound."""


class Gspo(Closed, frozen=True, tag_field="name", tag="gspo"):
    """A clipped ratio of the whole sequence, the geometric mean of its tokens' ratios (2507.18071)."""

    low: Positive = 3e-4
    high: Positive = 4e-4


class DppoTv(Closed, frozen=True, tag_field="name", tag="dppo_tv"):
    """−sg(min(ratio, cap))·A·log π where the probability has not moved by delta (2602.04879)."""

    delta: Annotated[float, Meta(gt=0, le=1)] = 0.2
    max_ratio: Positive = 20.0


class Reinforce(Closed, frozen=True, tag_field="name", tag="reinforce"):
    """−A·log π (Williams 1992)."""


class Bypass(Closed, frozen=True, tag_field="name", tag="bypass"):
    """The ratio is taken to the probabilities μ of the sampler, so it is itself the correction."""


class Truncate(Closed, frozen=True, tag_field="name", tag="truncate"):
    """Decoupled: π_old is computed anew, and each token weighs min(π_old/μ, cap)."""

    cap: Annotated[float, Meta(ge=1)] = 2.0


class Mask(Closed, frozen=True, tag_field="name", tag="mask"):
    """Decoupled: a token weighs π_old/μ, or nothing outside [low, high]."""

    low: Annotated[float, Meta(gt=0, le=1)] = 0.5
    high: Annotated[float, Meta(ge=1)] = 2.0


class Kl(Closed, frozen=True):
    """Reverse KL to the reference policy, which is the model before training.

    Only trajectories that are trained on have it: with drop_zero_variance = false these are all.
    """

    coefficient: NotNegative = 0.0
    """0 switches it off."""
    placement: Literal["loss_k2", "reward_k1"] = "loss_k2"
    """Half the squared log-ratio in the loss ("loss_k2"), or the log-ratio subtracted from the reward
    ("reward_k1"); both estimate the reverse KL."""


class Forward(Closed, frozen=True, tag_field="name", tag="forward"):
    """KL(teacher‖student): the student covers every answer that the teacher finds likely."""


class Reverse(Closed, frozen=True, tag_field="name", tag="reverse"):
    """KL(student‖teacher): the student may leave out answers that it cannot give as well."""


class Jsd(Closed, frozen=True, tag_field="name", tag="jsd"):
    """GKD's generalised Jensen–Shannon divergence (2306.13649); it vanishes at both ends of beta."""

    beta: Annotated[float, Meta(ge=0.1, le=0.9)] = 0.5
    """The teacher's share of the mixture."""


class SkewedForward(Closed, frozen=True, tag_field="name", tag="skewed_forward"):
    """KL from the teacher to a mixture with the student (DistiLLM, 2402.03898)."""

    skew: Annotated[float, Meta(gt=0, lt=1)] = 0.1


class SkewedReverse(Closed, frozen=True, tag_field="name", tag="skewed_reverse"):
    """KL from the student to a mixture with the teacher (DistiLLM)."""

    skew: Annotated[float, Meta(gt=0, lt=1)] = 0.1


class TotalVariation(Closed, frozen=True, tag_field="name", tag="total_variation"):
    """Half the sum of the differences of the probabilities."""


Surrogate = Clip | Cispo | Gspo | DppoTv | Reinforce
Correction = Bypass | Truncate | Mask
Divergence = Forward | Reverse | Jsd | SkewedForward | SkewedReverse | TotalVariation
