"""Turns the questions of a data recipe into the queries that a generator takes."""

from collections.abc import Sequence

from configs.data_schema import DataSampling
from ops.make import records
from ops.make.store import Store
from policies.generators.protocol import Begun, Query
from policies.sampling import Sampling


def queries(
    questions: Sequence[records.Question], store: Store, user_turn: tuple[int, ...] | None = None
) -> list[Query]:
    """Returns the questions with what the store has of their answers.

    A question without messages continues the token ids `user_turn`.
    """
    return [
        Query(
            name=question.name,
            key=question.key,
            messages=question.messages,
            ids=None if question.messages else user_turn,
            begun=_begun(store.begun.get(question.name)),
        )
        for question in questions
    ]


def sampling_of(settings: DataSampling) -> Sampling:
    """Returns how a generator samples."""
    return Sampling(
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
    )


def _begun(record: records.Begun | None) -> Begun | None:
    return Begun(ids=record.tokens, logprobs=record.logprobs) if record else None
