"""A checkpoint on this machine as a generator: decoded in slots, each answer given between two tokens.

Logits that are no numbers never become an answer: a sampled token shows them in its log-probability, and
an answer that was taken greedily, whose log-probabilities are all zero, is scored once more.

Shapes: T tokens of one answer, D hidden width.
"""

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from kernels.logprobs import score
from policies import decode
from policies.generators.protocol import Answer, MayContinue, Query
from policies.policy import Policy
from policies.sampling import Sampling

FROZEN = -1
"""The weights version of a policy that is never trained."""


class LocalGenerator:
    """A loaded policy. Its caller holds the GPU lease while it generates."""

    def __init__(self, policy: Policy, slots: int) -> None:
        self._policy = policy
        self._decoder = decode.Decoder(policy, slots)

    @property
    def sampled_tokens(self) -> int:
        """How many tokens were sampled so far, in all calls."""
        return self._decoder.counts.sampled_tokens

    def generate(
        self, queries: Sequence[Query], sampling: Sampling, may_continue: MayContinue
    ) -> Iterator[Answer]:
        """Yields answers, first the failures of prompts that do not fit. One call runs at a time."""
        room = self._policy.context_length - sampling.max_new_tokens
        queried: dict[int, Query] = {}
        sequences: list[decode.Sequence] = []
        for query in queries:
            sequence = self._sequence(query)
            length = len(sequence.prompt)
            if not 0 < length <= room:
                kind = "prompt_too_long" if length else "prompt_empty"
                reason = f"{length} tokens, room for {room}"
                yield Answer(name=query.name, failure=kind, reason=reason)
                continue
            queried[id(sequence)] = query
            sequences.append(sequence)
        for sequence in self._decoder.ended(
            sequences, sampling, FROZEN, lambda: FROZEN if may_continue() else None
        ):
            query = queried.pop(id(sequence))
            failure = "" if self._all_numbers(sequence, sampling) else "nan_logits"
            yield self._answer(query, sequence, failure)
        mx.clear_cache()
        for sequence in sequences:
            if id(sequence) in queried and sequence.tokens:
                yield self._answer(queried[id(sequence)], sequence)

    def close(self) -> None:
        """Does nothing: the weights go with the process."""

    def _sequence(self, query: Query) -> decode.Sequence:
        ids = query.ids
        if ids is None:
            ids = tuple(self._policy.tokenizer.prompt(query.messages))
        sequence = decode.Sequence(prompt=ids, key=query.key)
        if query.begun is not None:
            sequence.tokens, sequence.logprobs = list(query.begun.ids), list(query.begun.logprobs)
            sequence.versions = [FROZEN] * len(sequence.tokens)
        return sequence

    def _answer(self, query: Query, sequence: decode.Sequence, failure: str = "") -> Answer:
        before = len(query.begun.ids) if query.begun is not None else 0
        return Answer(
            name=query.name,
            stop=str(sequence.stop_reason),
            text=self._policy.tokenizer.decode(sequence.tokens),
            failure=failure,
            reason="the logits of the teacher are no numbers there" if failure else "",
            prompt=sequence.prompt,
            ids=sequence.tokens,
            logprobs=sequence.logprobs,
            new_tokens=len(sequence.tokens) - before,
            seconds=sequence.seconds,
        )

    def _all_numbers(self, sequence: decode.Sequence, sampling: Sampling) -> bool:
        logprobs = sequence.logprobs if sampling.temperature else self._scored(sequence)
        return all(map(math.isfinite, logprobs))

    def _scored(self, sequence: decode.Sequence) -> list[float]:
        """Returns the log-probabilities of a greedy answer, for which the decoder gives zeros."""
        ids = [*sequence.prompt, *sequence.tokens]
        first = len(sequence.prompt) - 1
        hidden_TD = self._policy.hidden(mx.array([ids[:-1]]))[0, first:]
        targets_T = mx.array(ids[first + 1 :])
        scored_T = score(hidden_TD, self._policy.project, targets_T, temperature=1.0)
        return np.array(scored_T).tolist()
