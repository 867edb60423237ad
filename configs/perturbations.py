"""Settings of how evolution strategies change the weights: noise, steps, anchors."""

from typing import Annotated, Literal

from configs.fields import Closed, Positive, up_to

RANK_SPREAD = 12**-0.5
"""Standard deviation of centred ranks; that of the other shapings is about 1."""


class LowRank(Closed, frozen=True, tag_field="name", tag="low_rank"):
    """E = A·Bᵀ/√rank for each matrix (EGGROLL, 2511.16652): a population decodes in one batch.

    Norms and biases, which have no low rank, are not perturbed.
    """

    rank: Annotated[int, up_to(1024)] = 1


class FullRank(Closed, frozen=True, tag_field="name", tag="full_rank"):
    """Every element has noise of its own; members are evaluated one after another."""

    vectors: bool = True
    """Perturbs norms and biases too. In half precision most of their noise is lost to rounding."""


class PlainStep(Closed, frozen=True, tag_field="name", tag="plain"):
    """θ += alpha·mean(fitness·noise), with 1/σ absorbed in alpha (2509.24372)."""

    alpha: Positive = 5e-4


class AdamwStep(Closed, frozen=True, tag_field="name", tag="adamw"):
    """The same mean as a gradient, through AdamW with the settings of `optimizer`."""


class Free(Closed, frozen=True, tag_field="name", tag="none"):
    """No anchor: nothing holds the weights near the base."""


class AnchorL2(Closed, frozen=True, tag_field="name", tag="l2"):
    """θ = θ₀ + (1 − α·strength)·(θ − θ₀) after each step (2605.30148), against forgetting."""

    strength: Positive


class AnchorSoft(Closed, frozen=True, tag_field="name", tag="soft_threshold"):
    """θ − θ₀ moves towards 0 by α·strength after each step, and stops at 0 (2605.30148)."""

    strength: Positive


class Generation(Closed, frozen=True, kw_only=True):
    """Settings by which learner and samplers make, score and add up a generation's noise."""

    population: int
    sigma: float
    antithetic: bool
    perturbation: LowRank | FullRank
    noise: Literal["rademacher", "uniform", "normal"]
    layers: int
    modules: list[str]
    shaping: Literal["z_score", "centered_ranks", "group_mean"]
    update: PlainStep | AdamwStep
    anchor: Free | AnchorL2 | AnchorSoft
