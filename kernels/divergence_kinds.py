"""The divergences by name: their parameters, values and gradients.

With t the teacher, p the student and d = log p − log t, all formulas are written in d, so that a
teacher equal to the student gives exactly zero.

    kind             divergence                              gradient per logit: p (g − Σ p g), g =
    forward          Σ t log(t/p)                            −t/p
    reverse          Σ p log(p/t)                            d
    jsd              β KL(t‖m) + (1−β) KL(p‖m), m = βt+(1−β)p    (1−β) log(p/m)
    skewed_forward   KL(t‖m), m = αt + (1−α)p                −(1−α) t/m
    skewed_reverse   KL(p‖m), m = (1−α)t + αp                log(p/m) − α p/m
    total_variation  ½ Σ |p − t|                             ½ sign(p − t)

A temperature divides the logits of both. The result is multiplied by the temperature squared (Hinton
2015), or by the temperature itself for total variation, which keeps the gradient's scale. jsd is GKD's
(Agarwal 2023, 2306.13649); it vanishes at both ends of β, so use forward or reverse there. The skewed
kinds are DistiLLM's (Ko 2024, 2402.03898).

Shapes: C tokens of a chunk, W events of the distributions: a vocabulary's ids, or some of them and a tail.
"""

import math
from typing import Literal, get_args

import mlx.core as mx
from msgspec import Struct

from kernels.logprobs import normalise

Kind = Literal[
    "forward", "reverse", "jsd", "skewed_forward", "skewed_reverse", "total_variation"
]  # fmt: skip
BETA = (0.1, 0.9)
DEFAULT_BETA = 0.5
DEFAULT_SKEW = 0.1


class Divergence(Struct, frozen=True, kw_only=True):
    """The kind of a divergence and its parameters. Raises ValueError for parameters that make no sense."""

    kind: Kind = "reverse"
    beta: float | None = None
    """The teacher's share of the mixture in jsd; 0.5 unless given."""
    skew: float | None = None
    """The α of the skewed kinds; 0.1 unless given."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        skewed = self.kind.startswith("skewed_")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: needed one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.beta is not None and self.kind != "jsd":
            raise ValueError(f"beta: needed only by jsd, got {self.beta} for {self.kind}")
        if self.skew is not None and not skewed:
            raise ValueError(f"skew: needed only by skewed divergences, got it for {self.kind}")
        if self.kind == "jsd" and not BETA[0] <= self.mixture <= BETA[1]:
            raise ValueError(
                f"beta: needed a number in [{BETA[0]}, {BETA[1]}], got {self.beta}: jsd vanishes "
                "towards 0 and 1, where forward and reverse are to be used"
            )
        if skewed and not 0 < self.mixture < 1:
            raise ValueError(f"skew: needed a number in (0, 1), got {self.skew}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: needed a number above 0, got {self.temperature}")

    @property
    def mixture(self) -> float:
        """Returns β for jsd, α for the other kinds."""
        if self.kind == "jsd":
            return DEFAULT_BETA if self.beta is None else self.beta
        return DEFAULT_SKEW if self.skew is None else self.skew

    @property
    def scale(self) -> float:
        """Returns the divergence's factor, which makes the gradient's scale independent of temperature."""
        return self.temperature ** (1 if self.kind == "total_variation" else 2)


class Softmax:
    """The softmax of logits, and their log-sum-exp."""

    def __init__(self, logits_CW: mx.array, temperature: float) -> None:
        shifted_CW, exp_CW, log_total_C = normalise(logits_CW, temperature)
        self.log_CW = shifted_CW - log_total_C[:, None]
        self.mass_CW = exp_CW * mx.exp(-log_total_C)[:, None]
        self.log_mass_C = log_total_C + logits_CW.max(axis=-1).astype(mx.float32) / temperature
        # A sum of finite numbers and a NaN or an infinity is not finite.
        self.finite_C = mx.isfinite(shifted_CW.sum(axis=-1))


class Given:
    """A distribution that is given by its log-probabilities."""

    def __init__(self, log_CW: mx.array) -> None:
        self.log_CW = log_CW
        self.mass_CW = mx.exp(log_CW)


Distribution = Softmax | Given


def value(divergence: Divergence, p: Distribution, t: Distribution) -> mx.array:
    """Returns the divergence [C] of student p and teacher t, not yet multiplied by `scale`."""
    d_CW, a = p.log_CW - t.log_CW, divergence.mixture
    match divergence.kind:
        case "forward":
            terms_CW = -t.mass_CW * d_CW
        case "reverse":
            terms_CW = p.mass_CW * d_CW
        case "jsd":
            over_t_CW, over_p_CW = _log_mixture(d_CW, a)
            terms_CW = -a * t.mass_CW * over_t_CW - (1 - a) * p.mass_CW * over_p_CW
        case "skewed_forward":
            terms_CW = -t.mass_CW * _log_mixture(d_CW, a)[0]
        case "skewed_reverse":
            terms_CW = -p.mass_CW * _log_mixture(d_CW, 1 - a)[1]
        case "total_variation":
            terms_CW = 0.5 * mx.abs(p.mass_CW - t.mass_CW)
    return terms_CW.sum(axis=-1)


def slope(divergence: Divergence, p: Distribution, t: Distribution) -> mx.array:
    """Returns the divergence's gradient [C, W] in the student's logits over the temperature.

    Adding a constant to g has no effect; the constant here makes g 0 where p = t.
    """
    d_CW, a = p.log_CW - t.log_CW, divergence.mixture
    match divergence.kind:
        case "forward":
            return p.mass_CW - t.mass_CW
        case "reverse":
            g_CW = d_CW
        case "jsd":
            g_CW = (a - 1) * _log_mixture(d_CW, a)[1]
        case "skewed_forward":
            g_CW = (a - 1) * mx.expm1(-_log_mixture(d_CW, a)[0])
        case "skewed_reverse":
            from_p_CW = -_log_mixture(d_CW, 1 - a)[1]
            g_CW = from_p_CW - a * mx.expm1(from_p_CW)
        case "total_variation":
            g_CW = 0.5 * mx.sign(p.mass_CW - t.mass_CW)
    return p.mass_CW * (g_CW - (p.mass_CW * g_CW).sum(axis=-1, keepdims=True))


def _log_mixture(d_CW: mx.array, share: float) -> tuple[mx.array, mx.array]:
    """Returns log(m/t) and log(m/p) of m = share·t + (1 − share)·p.

    Neither overflows, and both are exactly 0 where d is 0.
    """
    gap_CW = mx.abs(d_CW)
    smaller_CW = mx.where(d_CW > 0, share, 1 - share)  # the share of the less likely one
    log_CW = mx.log1p(smaller_CW * mx.expm1(-gap_CW))  # of m over the more likely one
    return mx.maximum(d_CW, 0.0) + log_CW, mx.maximum(-d_CW, 0.0) + log_CW
