"""A generator answers prompts, one by one as they end; what is done with an answer is the caller's business.

    query ──▶ generate(queries, sampling, may_continue) ──▶ answers as they end ──▶ a cache, a journal, rows
                                        │ False
                                        ▼
                     nothing more is begun; what is unfinished comes as "interrupted"

The teacher actor and `pippin make-data` both use one. This file imports no MLX: an endpoint needs none.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from policies.sampling import Sampling
from runtime.trajectory import StopReason

MayContinue = Callable[[], bool]
"""Is asked between tokens, or before each request; False stops."""


class Begun(Struct, frozen=True, kw_only=True):
    """The tokens of an answer that was interrupted, with the log-probabilities that they were sampled at."""

    ids: list[int]
    logprobs: list[float]


class Query(Struct, frozen=True, kw_only=True):
    """One prompt. Its key decides every draw of its answer, and the seed that an endpoint is sent."""

    name: str
    """Is repeated in the answer."""
    key: int
    messages: list[dict[str, str]]
    ids: tuple[int, ...] | None = None
    """Token ids that a local generator continues instead of the messages."""
    begun: Begun | None = None
    """A local generator goes on behind these tokens; an endpoint cannot."""


class Answer(Struct, frozen=True, kw_only=True):
    """One query's answer: finished, interrupted, or a failure with its kind."""

    name: str
    stop: str = ""
    """A stop reason; an endpoint may send others than `StopReason` knows."""
    text: str = ""
    failure: str = ""
    """The kind of failure: prompt_too_long, prompt_empty, nan_logits, or a kind of `runtime.chat.Failure`."""
    reason: str = ""
    """The failure in one line."""
    prompt: tuple[int, ...] = ()
    ids: list[int] = []
    """A local generator's tokens, the stop token included; an endpoint gives none."""
    logprobs: list[float] = []
    new_tokens: int | None = None
    """Tokens that were sampled in this call; None if an endpoint does not say."""
    reasoning: str = ""
    model: str = ""
    """The model's name as an endpoint gives it."""
    seconds: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether the answer can be gone on with."""
        return self.stop == StopReason.INTERRUPTED


class Generator(Protocol):
    """Answers queries."""

    def generate(
        self, queries: Sequence[Query], sampling: Sampling, may_continue: MayContinue
    ) -> Iterator[Answer]:
        """Yields each answer as it ends, and behind them what was interrupted with at least one token.

        A query that was never begun when `may_continue` said False has no answer.
        """
        ...

    def close(self) -> None:
        """Ends what is under way."""
        ...
