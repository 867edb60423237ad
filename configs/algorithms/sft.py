"""Settings of supervised fine-tuning."""

from collections.abc import Iterator
from typing import Annotated

from configs.algorithm import AlgorithmSettings
from configs.algorithms import register
from configs.facts import Facts
from configs.fields import up_to
from configs.problems import missing_column, unused_temperature
from configs.run import RunSettings
from configs.wording import count


@register
class Sft(AlgorithmSettings, frozen=True, tag="sft"):
    """Supervised fine-tuning: cross-entropy on the answers, averaged over the step's tokens."""

    rows_per_step: Annotated[int, up_to(2**16)] = 32

    def facts(self, run: RunSettings) -> Facts:
        """Returns the facts about this algorithm that the rest of Pippin uses."""
        return Facts(
            prompts_per_step=self.rows_per_step,
            rows_per_step=self.rows_per_step,
            reads_data=True,
            label="sft",
        )

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields a sentence for each setting that cannot work, or has no effect, beside the others."""
        yield from missing_column(
            run, "response", 'algorithm "sft"', "the column with the answers to imitate"
        )
        why = ': algorithm "sft" samples nothing to learn from; evaluation has eval.temperature'
        yield from unused_temperature(run, why)

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields the sentences that explain the recipe's numbers."""
        rows = self.rows_per_step
        yield f"{count(rows, 'row')} = 1 optimiser step, averaged over the tokens of their answers."
        yield f"{count(self.steps, 'step')} = {count(self.steps * rows, 'row')} in all."
