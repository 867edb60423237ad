"""Preference learning: the preferred answer is to become likelier than the rejected one.

    offline   pairs of data, or answers judged one by one (KTO) ──▶ preference loss
    online    G answers a prompt ──▶ rewards ──▶ best against worst ──▶ preference loss

The loss is a setting: DPO (2305.18290) and its forms, IPO, SimPO, ORPO, KTO. A pair is learned from whole or
not at all.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from configs.algorithms.preference import FromPolicy
from configs.algorithms.preference import Preference as PreferenceSettings
from configs.schema import Settings
from policies.algorithms import metrics, register
from policies.algorithms.protocol import Read, Request, Sample
from policies.annotation import constant, kept, with_annotation
from policies.terms import Preference as PreferenceTerm
from policies.terms import Term
from runtime.settlement import Row, Settled, Settlement, groups, settled
from runtime.tasks.prompt import Prompt


@register(PreferenceSettings)
class Preference:
    """Reads pairs, or makes them of the policy's own answers."""

    trainer = "policies.update:Updater"
    weight_loader = "policies.trainer:WholeWeightLoader"

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.algorithm, PreferenceSettings)
        self._preference = settings.algorithm
        self._temperature = settings.sampling.temperature

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns one request: the pairs of data, or a group of answers to each prompt."""
        source = self._preference.learn_from
        if isinstance(source, FromPolicy):
            answers = source.group_size
            return [Sample(prompts=prompts, answers=answers, temperature=self._temperature)]
        return [Read(prompts=prompts)]

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns which rows are learned from: both answers of a pair or none."""
        source = self._preference.learn_from
        if isinstance(source, FromPolicy):
            return _best_against_worst(rows, source.margin)
        decisions = [settled(row) for row in rows]
        useful = 0
        for group in groups(rows):
            torn = any(rows[i].dropped for i in group)
            useful += not torn
            for i in group:
                if torn and not rows[i].dropped:
                    decisions[i] = settled(rows[i], dropped="other_of_pair_dropped")
        return Settlement(rows=decisions, useful_prompts=useful)

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns metrics of answers that were sampled and judged."""
        return metrics.of_answers(rows)

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch with weight 1 on every token of the answers that are compared.

        An answer whose reward failed has no preference: it is not dropped, but compared with nothing.
        """
        compared = batch["preference"].is_valid().to_pylist()
        weights = {i: 1.0 for i in kept(batch) if compared[i]}
        return with_annotation(batch, preference_weight=constant(batch, weights))

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns nothing more than what the loss term reports."""
        return {}

    def terms(self) -> list[Term]:
        """Returns the preference loss."""
        return [PreferenceTerm(settings=self._preference.loss)]


def _best_against_worst(rows: Sequence[Row], margin: float) -> Settlement:
    """Returns a pair for each prompt: the answer with the highest reward, and the one with the lowest.

    The first of equals is taken. Failed rewards are counted; the other answers are dropped as not compared.
    """
    decisions: list[Settled] = [settled(row) for row in rows]
    useful = 0
    for group in groups(rows):
        scored = [i for i in group if rows[i].reward is not None]
        rewards = [rows[i].reward or 0.0 for i in scored]
        reason = "too_few_scored" if len(scored) < 2 else None
        if reason is None and max(rewards) - min(rewards) <= margin:
            reason = "zero_variance"
        for i in scored:
            decisions[i] = settled(rows[i], dropped=reason or "not_compared")
        if reason is None:
            useful += 1
            for i, side in (
                (scored[int(np.argmax(rewards))], 1),
                (scored[int(np.argmin(rewards))], -1),
            ):
                decisions[i] = settled(rows[i], pair=rows[i].prompt, preference=side)
    return Settlement(rows=decisions, useful_prompts=useful)
