"""The loss terms of algorithms, as data: the column that weighs their tokens, and their unit.

The arithmetic of a term is in `policies/objectives`, looked up by the term's class. The learner adds up the
terms of a list, and refuses a weight that no term of the list uses, so that nothing is dropped silently.
"""

from typing import ClassVar, Literal

from msgspec import Struct

from configs.losses import Bypass, Clip, Correction, Surrogate
from configs.preferences import PreferenceLoss, is_paired

Normalizer = Literal["token_mean", "sequence_mean", "constant"]
Unit = Literal["token", "sequence", "group", "pair"]
"""The unit on which a term's loss is defined. Rows of one unit are always in the same micro-batch."""


class Term(Struct, frozen=True, kw_only=True):
    """One term of a loss."""

    weight: ClassVar[str]
    """Column of the record with each token's weight in this term."""
    unit: ClassVar[Unit] = "token"


class PolicyGradient(Term, frozen=True, kw_only=True):
    """The policy gradient, −A·log π in one of its forms, with KL to the reference and an entropy bonus."""

    weight: ClassVar[str] = "policy_gradient_weight"
    surrogate: Surrogate = Clip()
    correction: Correction = Bypass()
    normalizer: Normalizer = "token_mean"
    kl_coefficient: float = 0.0
    """Coefficient of k2 to the reference in the loss; 0 for none."""
    entropy_bonus: float = 0.0
    """Coefficient of the mean entropy of the term's tokens; unless it is 0, entropies are differentiable."""


class CrossEntropy(Term, frozen=True, kw_only=True):
    """Negative log-likelihood of answers that are imitated, averaged over tokens."""

    weight: ClassVar[str] = "cross_entropy_weight"
    counted: str = "cross_entropy_weight"
    """Column whose tokens the mean is taken over. Beside a divergence it is that term's column, so that the
    two terms are shares of one mean over all rows."""


class Divergence(Term, frozen=True, kw_only=True):
    """Divergence of the policy from a teacher's distributions, averaged over tokens."""

    weight: ClassVar[str] = "divergence_weight"
    kind: Literal[
        "forward", "reverse", "jsd", "skewed_forward", "skewed_reverse", "total_variation"
    ]
    beta: float | None = None
    skew: float | None = None
    temperature: float = 1.0


class Preference(Term, frozen=True, kw_only=True):
    """Preference loss, by which preferred answers become likelier than rejected ones; averaged over units."""

    weight: ClassVar[str] = "preference_weight"
    unit: ClassVar[Unit] = "pair"
    settings: PreferenceLoss

    @property
    def paired(self) -> bool:
        """Returns whether a unit is a pair of rows; otherwise it is one row."""
        return is_paired(self.settings)

    @property
    def needs_baseline(self) -> bool:
        """Returns whether the mean log-ratio of mismatched rows is needed before the gradient is taken."""
        return not self.paired


def needs_temperature(terms: list[Term]) -> bool:
    """Returns whether the terms need log-probabilities at the sampling temperature."""
    return any(isinstance(term, PolicyGradient) for term in terms)
