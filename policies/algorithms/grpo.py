"""GRPO and its family (2402.03300): several answers to a prompt, each compared with the others.

    G answers a prompt ──▶ rewards (− length penalty) ──▶ less the group's mean ──▶ clipped policy gradient

Members of the family (Dr. GRPO, DAPO, GSPO, CISPO, RLOO) are settings. Groups whose rewards are all equal
give no gradient: they are dropped and counted, and new prompts may replace them (DAPO's dynamic sampling).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from configs.algorithms.grpo import Grpo as GrpoSettings
from configs.schema import Settings
from policies.advantages import advantages, informative, overlong_penalty
from policies.algorithms import metrics, register
from policies.algorithms.protocol import Request, Sample
from policies.annotation import constant, with_annotation
from policies.terms import PolicyGradient, Term
from runtime.metrics import mean
from runtime.settlement import Row, Settled, Settlement, groups, settled
from runtime.tasks.prompt import Prompt
from runtime.trajectory import with_columns


@register(GrpoSettings)
class Grpo:
    """Samples groups, settles them by their rewards, and trains on the advantages."""

    trainer = "policies.update:Updater"
    weight_loader = "policies.trainer:WholeWeightLoader"

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.algorithm, GrpoSettings)
        self._grpo = settings.algorithm
        self._temperature = settings.sampling.temperature
        self._limit_tokens = settings.sampling.max_new_tokens

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns one request for a group of answers to each prompt."""
        group_size = self._grpo.group_size
        return [Sample(prompts=prompts, answers=group_size, temperature=self._temperature)]

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns shaped rewards, group-relative advantages, and the reason if a row is not trained on.

        A failed reward enters no mean. A group with fewer than two rewards, or with equal ones, is dropped.
        """
        shaped = [self._shaped(row) for row in rows]
        dropped: list[str | None] = [None] * len(rows)
        useful = 0
        for group in groups(rows):
            reason = self._reason([r for i in group if (r := shaped[i].reward) is not None])
            useful += reason is None
            for i in group:
                if rows[i].failure is None and shaped[i].reward is not None:
                    dropped[i] = reason or self._truncated(rows[i])
        values = self._advantages([row.reward for row in shaped], [row.prompt for row in rows])
        settled_rows = [
            settled(
                row, reward=shape.reward, parts=shape.parts, dropped=reason, advantage=advantage
            )
            for row, shape, reason, advantage in zip(rows, shaped, dropped, values)
        ]
        return Settlement(rows=settled_rows, useful_prompts=useful)

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns metrics of the answers and of the groups."""
        shaped = [self._shaped(row) for row in rows]
        tolerance = self._grpo.zero_variance_tolerance
        by_group = list(groups(rows))
        rewards = [[r for i in g if (r := shaped[i].reward) is not None] for g in by_group]
        passed = [[shaped[i].passed for i in g] for g in by_group]
        return {
            **metrics.of_answers(rows),
            "reward_mean": mean([s.reward for s in shaped if s.reward is not None]),
            "zero_variance_share": mean([float(not informative(r, tolerance)) for r in rewards]),
            "all_passed_share": mean([float(all(group)) for group in passed]),
            "none_passed_share": mean([float(not any(group)) for group in passed]),
        }

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch with the row's advantage on each sampled token that is trained on.

        With `reward_kl_N` the reward is that of KL-regularised RL: reward − coefficient · log-ratio.
        """
        if reward_kl_N is not None:
            rewards_N = np.array([np.nan if r is None else r for r in batch["reward"].to_pylist()])
            rewards_N -= self._grpo.kl.coefficient * reward_kl_N
            values = self._advantages(rewards_N.tolist(), batch["prompt_index"].to_pylist())
            batch = with_columns(batch, {"advantage": values})
        kept = zip(batch["dropped"].to_pylist(), batch["advantage"].to_pylist())
        learned = {i: a for i, (reason, a) in enumerate(kept) if reason is None and a is not None}
        return with_annotation(
            batch,
            token_advantage=constant(batch, learned),
            policy_gradient_weight=constant(batch, dict.fromkeys(learned, 1.0)),
        )

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns {}: the metrics of the loss terms are enough."""
        return {}

    def terms(self) -> list[Term]:
        """Returns the policy-gradient term with these settings."""
        grpo = self._grpo
        in_loss = grpo.kl.placement == "loss_k2"
        return [
            PolicyGradient(
                surrogate=grpo.surrogate,
                correction=grpo.correction,
                normalizer=grpo.normalizer,
                kl_coefficient=grpo.kl.coefficient if in_loss else 0.0,
                entropy_bonus=grpo.entropy_bonus,
            )
        ]

    def _shaped(self, row: Row) -> Settled:
        """Returns the verdict with DAPO's penalty added for answers near the length limit."""
        zone = self._grpo.overlong.penalty_tokens
        if row.reward is None or not zone:
            return settled(row)
        weight = self._grpo.overlong.penalty
        penalty = weight * overlong_penalty(row.tokens, self._limit_tokens, zone)
        parts = {**(row.verdict.parts if row.verdict else {}), "overlong": penalty}
        return settled(row, reward=row.reward + penalty, parts=parts)

    def _reason(self, rewards: list[float]) -> str | None:
        """Returns the reason for which a whole group with these rewards is dropped; None if it is kept."""
        if len(rewards) < 2:
            return "too_few_scored"
        flat = not informative(rewards, self._grpo.zero_variance_tolerance)
        return "zero_variance" if self._grpo.drop_zero_variance and flat else None

    def _truncated(self, row: Row) -> str | None:
        cut = self._grpo.overlong.mask_truncated and row.stop_reason == "length"
        return "truncated" if cut else None

    def _advantages(
        self, rewards: Sequence[float | None], prompts: Sequence[int]
    ) -> list[float | None]:
        """Returns the advantage of each row; None without a reward or without another one in the group."""
        rewards_N = np.array([np.nan if r is None else r for r in rewards])
        values_N = advantages(rewards_N, prompts, self._grpo.advantage)
        return [None if np.isnan(value) else float(value) for value in values_N]
