"""Settings of preference losses."""

from configs.fields import Closed, NotNegative, Positive, Share


class Dpo(Closed, frozen=True, tag_field="name", tag="dpo"):
    """−log σ(β·(log-ratio of the preferred − of the rejected answer)) (2305.18290)."""

    beta: Positive = 0.1
    label_smoothing: Share = 0.0
    """Share of labels that are taken to be wrong (cDPO)."""
    robust: bool = False
    """Corrects for wrong labels without bias (2403.00409) in place of cDPO's conservative form."""
    length_normalized: bool = False
    """Divides each log-ratio by its answer's number of tokens (2411.15124; β is then about 5)."""
    nll_weight: NotNegative = 0.0
    """Weight of the preferred answer's negative log-likelihood, mean over its tokens (2404.19733)."""


class Ipo(Closed, frozen=True, tag_field="name", tag="ipo"):
    """(h − 1/(2β))², where h is the difference of the two log-ratios (2310.12036): h stays finite."""

    beta: Positive = 0.1
    length_normalized: bool = True
    """Takes the mean of each answer's log-ratio over its tokens; false: the sum."""
    nll_weight: NotNegative = 0.0


class Simpo(Closed, frozen=True, tag_field="name", tag="simpo"):
    """−log σ(β·difference of mean log-probabilities − γ), without a reference (2405.14734)."""

    beta: Positive = 2.0
    gamma: NotNegative = 1.0
    """Margin by which the preferred answer is to be likelier."""
    nll_weight: NotNegative = 0.0


class Orpo(Closed, frozen=True, tag_field="name", tag="orpo"):
    """Imitation of the preferred answer plus β·its odds ratio, without a reference (2403.07691)."""

    beta: Positive = 0.1


class Kto(Closed, frozen=True, tag_field="name", tag="kto"):
    """Answers judged one by one: a sigmoid of the log-ratio around its mean (2402.01306)."""

    beta: Positive = 0.1
    desirable_weight: NotNegative = 1.0
    undesirable_weight: NotNegative = 1.0


PreferenceLoss = Dpo | Ipo | Simpo | Orpo | Kto


def needs_reference(loss: PreferenceLoss) -> bool:
    """Returns whether the loss uses log-probabilities under the policy before training."""
    return isinstance(loss, Dpo | Ipo | Kto)


def is_paired(loss: PreferenceLoss) -> bool:
    """Returns whether the loss compares two answers; otherwise it judges each one alone."""
    return not isinstance(loss, Kto)
