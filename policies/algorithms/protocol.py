"""What an algorithm is: who answers, how verdicts settle, how the record is annotated, which loss terms.

    requests   what is to be sampled, read or asked for one step's prompts        conductor
    settle     verdicts become rewards, advantages and reasons to drop a row      conductor
    annotate   the record gets, for each token, its weight in each loss term      learner
    terms      the losses that are added up                                       learner

An algorithm computes nothing itself that has weights in it, and imports no MLX: conductor and learner ask it
the same questions. Everything else about it is in its `Facts`.
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
    """The policy answers each prompt `answers` times; or each member of a population does so once."""

    prompts: Sequence[Prompt]
    answers: int
    temperature: float
    members: bool = False
    """A population answers: it is split over the samplers by member, not by prompt."""
    likelihood: bool = False
    """Nothing is sampled: members score the data's answers by their log-likelihood."""


class Read(Struct, frozen=True, kw_only=True):
    """The task's own answers to the prompts, or its preferred and rejected ones, become rows."""

    prompts: Sequence[Prompt]


class AskTeacher(Struct, frozen=True, kw_only=True):
    """A teacher answers each prompt once."""

    teacher: str
    prompts: Sequence[Prompt]


Request = Sample | Read | AskTeacher


class Algorithm(Protocol):
    """One algorithm under one recipe."""

    trainer: str
    """Module and class of what changes the weights, such as "policies.update:Updater"."""
    weight_loader: str
    """Module and class of what takes a sampler's model to a published version."""

    def __init__(self, settings: Settings) -> None: ...

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns the work that gives this step's trajectories."""
        ...

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns what becomes of each row of a step. A pure function of the rows."""
        ...

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns metrics of a step's answers, under the names of `runtime.metrics`."""
        ...

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch of a whole step with its annotation columns (`policies.annotation`).

        `reward_kl_N` [N rows] is the log-ratio of sampler to reference, summed over each answer, where
        `Facts.reward_kl` asks for it.
        """
        ...

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns metrics that can be read off an annotated batch; {} for most algorithms."""
        ...

    def terms(self) -> list[Term]:
        """Returns the loss terms, in the order in which they are added up."""
        ...
