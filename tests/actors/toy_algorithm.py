"""Best-of-group imitation, an algorithm from outside the package: it shows all that a new one needs.

    G answers a prompt ──▶ rewards ──▶ the best answer of each group ──▶ cross-entropy on it

It is one file that edits no other: settings, and what is done with them. `known` registers both for a while.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import numpy as np
import pyarrow as pa
from msgspec import Meta

from configs.algorithm import AlgorithmSettings
from configs.algorithms import temporarily
from configs.facts import Facts
from configs.fields import Count
from configs.problems import idle_samplers, missing_column
from configs.run import RunSettings
from configs.schema import Settings
from configs.wording import count
from policies.algorithms import ALGORITHMS, metrics
from policies.algorithms.protocol import Request, Sample
from policies.annotation import constant, kept, with_annotation
from policies.terms import CrossEntropy, Term
from runtime.settlement import Row, Settlement, groups, settled
from runtime.tasks.prompt import Prompt

NOT_BEST = "not_best"
"""Why an answer is not trained on: another one of its group has a higher reward, or came first."""


class BestOfGroup(AlgorithmSettings, frozen=True, tag="best_of_group"):
    """Settings: how many prompts a step has, and how many answers each of them gets."""

    prompts_per_step: Count = 16
    group_size: Annotated[int, Meta(ge=2)] = 4

    def facts(self, run: RunSettings) -> Facts:
        """Returns what may be asked about a run of this algorithm."""
        return Facts(
            prompts_per_step=self.prompts_per_step,
            rows_per_step=self.prompts_per_step * self.group_size,
            answers_per_prompt=self.group_size,
            samples=True,
            needs_reward=True,
            label="best of group",
        )

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields what cannot work together."""
        yield from missing_column(run, "reward", 'algorithm "best_of_group"', "a Python file")
        yield from idle_samplers(run, "algorithm.prompts_per_step", self.prompts_per_step)

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields what the numbers of the recipe mean."""
        yield (
            f"{count(self.prompts_per_step, 'prompt')} × {count(self.group_size, 'answer')}: the best of "
            f"each prompt's is imitated, {count(self.steps, 'step')} in all."
        )


class Imitation:
    """Samples groups and imitates the best answer of each."""

    trainer = "policies.update:Updater"
    weight_loader = "policies.trainer:WholeWeightLoader"

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.algorithm, BestOfGroup)
        self._answers = settings.algorithm.group_size
        self._temperature = settings.sampling.temperature

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns one request: a group of answers to each prompt."""
        return [Sample(prompts=prompts, answers=self._answers, temperature=self._temperature)]

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns the rewards; all scored answers of a group but the best one are dropped."""
        dropped: dict[int, str] = {}
        for group in groups(rows):
            scored = {i: reward for i in group if (reward := rows[i].reward) is not None}
            best = max(scored, key=lambda i: scored[i], default=None)
            dropped |= {i: NOT_BEST for i in scored if i != best}
        return Settlement(
            rows=[settled(row, dropped=dropped.get(i)) for i, row in enumerate(rows)],
            useful_prompts=len(rows) // self._answers,
        )

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns metrics of the answers."""
        return metrics.of_answers(rows)

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch with weight 1 on every token of a best answer."""
        rewards = batch["reward"].to_pylist()
        best = {i: 1.0 for i in kept(batch) if rewards[i] is not None}
        return with_annotation(batch, cross_entropy_weight=constant(batch, best))

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns nothing more than what the loss term reports."""
        return {}

    def terms(self) -> list[Term]:
        """Returns the cross-entropy."""
        return [CrossEntropy()]


@contextmanager
def known() -> Iterator[None]:
    """Has Pippin know the algorithm within the block, and forget it behind."""
    with temporarily(BestOfGroup), ALGORITHMS.temporarily(BestOfGroup, Imitation):
        yield
