"""Supervised fine-tuning: cross-entropy on the answers of data, averaged over the step's tokens."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from configs.algorithms.sft import Sft as SftSettings
from configs.schema import Settings
from policies.algorithms import register
from policies.algorithms.protocol import Read, Request
from policies.annotation import constant, kept, with_annotation
from policies.terms import CrossEntropy, Term
from runtime.settlement import Row, Settlement, settled
from runtime.tasks.prompt import Prompt


@register(SftSettings)
class Sft:
    """Reads rows and imitates their answers."""

    trainer = "policies.update:Updater"
    weight_loader = "policies.trainer:WholeWeightLoader"

    def __init__(self, settings: Settings) -> None:
        pass

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns one request for the data's answers to the prompts."""
        return [Read(prompts=prompts)]

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns the rows as they were read; rows that are too long are marked as dropped already."""
        return Settlement(rows=[settled(row) for row in rows], useful_prompts=len(rows))

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns {}: answers from data are not scored."""
        return {}

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch with weight 1 on every token of an answer."""
        return with_annotation(
            batch, cross_entropy_weight=constant(batch, dict.fromkeys(kept(batch), 1.0))
        )

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns {}: the metrics of the loss terms are enough."""
        return {}

    def terms(self) -> list[Term]:
        """Returns the cross-entropy."""
        return [CrossEntropy()]
