"""The protocol of an algorithm: its requests, its settlement of rows, its annotation, its loss terms.

    requests   what is sampled, read or asked of teachers for one step's prompts  conductor
    settle     verdicts become rewards, advantages and reasons to drop a row      conductor
    annotate   the record gets, for each token, its weight in each loss term      learner
    terms      the losses that are added up                                       learner

An algorithm runs no model and imports no MLX, so conductor and learner can both use it. Its other facts are
in `configs.facts.Facts`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from msgspec import Struct

from configs.schema import Settings
from policies.terms import Term
from runtime.settlement import Row, Settlement
from runtime.tasks.prompt import Prompt


class Sample(Struct, frozen=True, kw_only=True):
    """The request that the policy answers each prompt `answers` times, or each member of it once."""

    prompts: Sequence[Prompt]
    answers: int
    temperature: float
    members: bool = False
    """True if a population answers, which is split over the samplers by member and not by prompt."""
    likelihood: bool = False
    """True if members score the data's answers by their log-likelihood, and nothing is sampled."""


class Read(Struct, frozen=True, kw_only=True):
    """The request that the data's answers to the prompts, or its preferred and rejected ones, become rows."""

    prompts: Sequence[Prompt]


class AskTeacher(Struct, frozen=True, kw_only=True):
    """The request that a teacher answers each prompt once."""

    teacher: str
    prompts: Sequence[Prompt]


Request = Sample | Read | AskTeacher


class Algorithm(Protocol):
    """One algorithm under one recipe."""

    trainer: str
    """Module and class of the trainer, which changes the weights, such as "policies.update:Updater"."""
    weight_loader: str
    """Module and class of the weight loader, which brings a sampler's model to a published version."""

    def __init__(self, settings: Settings) -> None: ...

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns the requests whose results are this step's trajectories."""
        ...

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns the outcome of each row of a step; it depends on nothing but the rows."""
        ...

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns metrics of a step's answers, under the names of `runtime.metrics`."""
        ...

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch of a whole step with its annotation columns (`policies.annotation`).

        `reward_kl_N` [N rows] is the log-ratio of sampler to reference, summed over each answer. It is
        passed if `Facts.reward_kl` is not 0.
        """
        ...

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns metrics that are computed from an annotated batch; {} for most algorithms."""
        ...

    def terms(self) -> list[Term]:
        """Returns the loss terms, in the order in which they are added up."""
        ...
