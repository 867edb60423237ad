"""Evolution strategies: perturbed copies of the policy answer, and their noise is averaged by score.

    members (a key and a sign each) ──▶ answers ──▶ fitness = mean reward ──▶ Σ fitness · noise ──▶ step

There is no backward pass and no loss term. Learner and samplers exchange only keys and coefficients.
`policies/evolution` has the noise, the population and the step (EGGROLL, 2511.16652; 2509.24372).
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from configs.algorithms.evolution import Es
from configs.schema import Settings
from policies.algorithms import metrics, register
from policies.algorithms.protocol import Request, Sample
from policies.terms import Term
from runtime.settlement import Row, Settlement, settled
from runtime.tasks.prompt import Prompt


@register(Es)
class Evolution:
    """Requests answers of every member of a generation to the same prompts."""

    trainer = "policies.evolution.trainer:EvolutionTrainer"
    weight_loader = "policies.evolution.loader:EvolutionWeightLoader"

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.algorithm, Es)
        self._es = settings.algorithm

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns one request, by which each member answers each prompt or scores the data's answer to it."""
        return [
            Sample(
                prompts=prompts,
                answers=self._es.population,
                temperature=self._es.temperature,
                members=True,
                likelihood=self._es.fitness == "log_likelihood",
            )
        ]

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns the rewards; a row's advantage is its member's fitness above the mean of all members.

        A member has no fitness if one of its answers has no reward.
        """
        prompts = {prompt: i for i, prompt in enumerate(sorted({row.prompt for row in rows}))}
        scores_NQ = np.full((self._es.population, len(prompts)), np.nan)
        for row in rows:
            if row.reward is not None:
                scores_NQ[row.sample, prompts[row.prompt]] = row.reward
        fitness_N = scores_NQ.mean(axis=1) if prompts else np.full(self._es.population, np.nan)
        finite_N = np.isfinite(fitness_N)
        above_N = fitness_N - (fitness_N[finite_N].mean() if finite_N.any() else 0.0)
        settled_rows = [
            settled(row, advantage=float(above) if math.isfinite(above) else None)
            for row in rows
            for above in [above_N[row.sample]]
        ]
        return Settlement(rows=settled_rows, useful_prompts=len(prompts))

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns metrics of the members' answers."""
        return metrics.of_answers(rows)

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch unchanged, because no token has a weight in a loss."""
        return batch

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns {}: the trainer's metrics are enough."""
        return {}

    def terms(self) -> list[Term]:
        """Returns no loss terms."""
        return []
