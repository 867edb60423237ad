"""The preference term: a loss of pairs or of judged answers, and the rewards that it implies.

Shapes: B sequences, T tokens in each.
"""

import mlx.core as mx

from configs.preferences import Dpo, Ipo, Kto, Orpo, Simpo, needs_reference
from policies.objectives.answers import Answers, log_ratio, mean_over
from policies.objectives.batch import Batch, Metrics, Outputs, needed
from policies.objectives.normalise import Denominators
from policies.objectives.preference import dpo, ipo, kto, mismatched, orpo, simpo
from policies.terms import Preference, Term

WHO = "preference"
NAMES = {
    "accuracy": "preference:preference_accuracy",
    "margin": "preference:reward_margin",
    "units": "preference_units",
    "chosen": "chosen_units",
    "rejected": "rejected_units",
    "chosen_reward": "chosen:chosen_reward",
    "rejected_reward": "rejected:rejected_reward",
}
"""Sums under the names by which `terms.summary` makes means of them: what is divided by which units."""


def preference(
    term: Term, outputs: Outputs, batch: Batch, counts: Denominators
) -> tuple[mx.array, Metrics]:
    """Returns the term's share of the loss, and sums over its units for the report."""
    assert isinstance(term, Preference)
    logprobs_BT, answers = outputs.logprobs_BT, answers_of(batch, term)
    match term.settings:
        case Dpo() as loss:
            losses_B, sums = dpo(
                logprobs_BT,
                answers,
                beta=loss.beta,
                label_smoothing=loss.label_smoothing,
                robust=loss.robust,
                length_normalized=loss.length_normalized,
                nll_weight=loss.nll_weight,
            )
        case Ipo() as loss:
            losses_B, sums = ipo(
                logprobs_BT,
                answers,
                beta=loss.beta,
                length_normalized=loss.length_normalized,
                nll_weight=loss.nll_weight,
            )
        case Simpo() as loss:
            losses_B, sums = simpo(
                logprobs_BT,
                answers,
                beta=loss.beta,
                gamma=loss.gamma,
                nll_weight=loss.nll_weight,
            )
        case Orpo() as loss:
            losses_B, sums = orpo(logprobs_BT, answers, beta=loss.beta)
        case Kto() as loss:
            losses_B, sums = kto(
                logprobs_BT,
                answers,
                beta=loss.beta,
                baseline=batch.baseline,
                desirable_weight=loss.desirable_weight,
                undesirable_weight=loss.undesirable_weight,
            )
    share = losses_B.sum() / counts.sequences
    metrics = {NAMES[name]: value for name, value in sums.items() if name in NAMES}
    return share, metrics | {"preference_loss": share}


def answers_of(batch: Batch, term: Preference) -> Answers:
    """Returns what the losses need of a micro-batch. Raises ValueError if something of it is missing."""
    reference_BT = batch.reference_logprobs_BT
    if needs_reference(term.settings):
        reference_BT = needed(reference_BT, WHO, "the reference's log-probabilities")
    return Answers(
        covered_BT=needed(batch.weights.get(term.weight), WHO, "weights"),
        pair_B=needed(batch.unit_B, WHO, "units"),
        label_B=needed(batch.preference_B, WHO, "preferences"),
        reference_logprobs_BT=reference_BT,
    )


def baseline_sums(
    term: Preference, logprobs_BT: mx.array, batch: Batch
) -> tuple[mx.array, mx.array]:
    """Returns the sum of the log-ratios of mismatched rows, and how many there are."""
    return mismatched(logprobs_BT, answers_of(batch, term))


def implied_rewards(term: Preference, logprobs_BT: mx.array, batch: Batch) -> mx.array:
    """Returns the reward [B] that the loss takes each answer to have: its log-ratio or mean log-probability
    times beta.
    """
    answers, loss = answers_of(batch, term), term.settings
    match loss:
        case Dpo() | Ipo():
            return loss.beta * log_ratio(logprobs_BT, answers, mean=loss.length_normalized)
        case Kto():
            return loss.beta * log_ratio(logprobs_BT, answers, mean=False)
        case Simpo() | Orpo():
            return loss.beta * mean_over(logprobs_BT, answers)
