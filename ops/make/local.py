"""A local checkpoint as a teacher: decoded in slots, a share of the questions under each GPU lease.

A sequence is stored at the token that ends it; Ctrl-C stores what the others have so far, and they go
on from there with the draws that they would have had. Logits that are no numbers never become an
answer: a sampled token shows them in its log-probability, and what was taken greedily is scored again.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from configs.data_schema import DataSampling
from configs.teachers import LocalTeacher
from kernels.logprobs import score
from ops.make.plan import INSTRUCTION
from ops.make.records import Answer, Question
from ops.make.teacher import Desk
from policies import decode
from policies.device import bound_cache, gpu_lease
from policies.frozen import model_of
from policies.load import load_frozen, load_tokens
from policies.tokens import Tokens
from runtime.errors import BadInput
from runtime.trajectory import StopReason

LEASE_S = 1800.0
SLOTS_PER_LEASE = 8
"""Questions under one lease, in slots: whoever else waits for the GPU comes in between."""
PROBES = ("Why", "a", "7", "é", "(")
"""User's messages that begin differently: what their prompts share lies before the user's turn."""


class Local:
    """The model, loaded. Raises BadInput for a checkpoint that cannot be used."""

    def __init__(self, settings: LocalTeacher, folder: Path) -> None:
        self._lease = gpu_lease()
        try:
            with self._lease.hold("pippin make-data to load the teacher", LEASE_S):
                self._policy = load_frozen(model_of(settings), folder)
        except BadInput as error:
            raise BadInput(str(error).replace("model.", "teacher.", 1)) from None
        bound_cache()
        self._prefix, self._end = user_turn(self._policy.tokenizer)

    def answer(
        self, questions: Sequence[Question], sampling: DataSampling, desk: Desk
    ) -> Iterator[None]:
        """Slots by slots. Raises BadInput if no prompt could ever fit."""
        limit = self._policy.context_length - sampling.max_new_tokens
        if limit < 1:
            raise BadInput(
                f"sampling.max_new_tokens: {sampling.max_new_tokens} leaves no room for a prompt in the "
                f"teacher's context of {self._policy.context_length} tokens"
            )
        decoder = decode.Decoder(self._policy, sampling.slots)
        share = sampling.slots * SLOTS_PER_LEASE
        for start in range(0, len(questions), share):
            pending = self._sequences(questions[start : start + share], limit, desk)
            with self._lease.hold("pippin make-data", LEASE_S):
                self._decode(decoder, pending, sampling, desk)
                mx.clear_cache()
            if desk.stop.asked:
                return
            yield

    def close(self) -> None:
        """Nothing outlives the process."""

    def _sequences(
        self, questions: Sequence[Question], limit: int, desk: Desk
    ) -> dict[str, decode.Sequence]:
        pending: dict[str, decode.Sequence] = {}
        for question in questions:
            prompt = self._prompt(question)
            if not 0 < len(prompt) <= limit:
                kind = "prompt_too_long" if prompt else "prompt_empty"
                desk.unaskable(question.name, kind, f"{len(prompt)} tokens, room for {limit}")
                continue
            sequence = decode.Sequence(prompt=prompt, key=question.key)
            if begun := desk.store.begun.get(question.name):
                sequence.tokens, sequence.logprobs = list(begun.tokens), list(begun.logprobs)
                sequence.versions = [0] * len(begun.tokens)
            pending[question.name] = sequence
        return pending

    def _prompt(self, question: Question) -> tuple[int, ...]:
        if not question.messages:
            return self._prefix
        return tuple(self._policy.tokenizer.prompt(question.messages))

    def _decode(
        self,
        decoder: decode.Decoder,
        pending: dict[str, decode.Sequence],
        sampling: DataSampling,
        desk: Desk,
    ) -> None:
        sequences = list(pending.values())
        settings = decode.Sampling(
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )

        def settle() -> int | None:
            for name in [name for name, sequence in pending.items() if sequence.finished]:
                self._settle(name, pending.pop(name), sampling, desk)
            desk.progress.counts.tokens = before + decoder.counts.sampled_tokens
            desk.progress.show()
            return None if desk.stop.asked else 0

        before = desk.progress.counts.tokens - decoder.counts.sampled_tokens
        with desk.stop.gently("writing down what the teacher has said so far"):
            decoder.run(sequences, settings, between_tokens=settle)
            settle()
            for name, sequence in pending.items():  # interrupted
                desk.interrupted(name, sequence.tokens, sequence.logprobs)

    def _settle(
        self, name: str, sequence: decode.Sequence, sampling: DataSampling, desk: Desk
    ) -> None:
        logprobs = sequence.logprobs if sampling.temperature else self._scored(sequence)
        if not all(map(math.isfinite, logprobs)):
            reason = "the logits of the teacher are no numbers there"
            desk.missed(name, "nan_logits", reason, passing=False)
            return
        tokens, stop = self._policy.tokenizer, sequence.stop_reason
        said = [t for t in sequence.tokens if t not in tokens.stop_tokens]
        if name.startswith(INSTRUCTION) and self._end in said:
            said, stop = said[: said.index(self._end)], StopReason.STOP
        text = tokens.decode(said)
        if not text.strip():
            desk.missed(name, "empty", "the teacher ended at once", passing=False)
            return
        desk.took(
            Answer(name=name, text=text, stop=str(stop or ""), tokens=len(said), at=time.time())
        )

    def _scored(self, sequence: decode.Sequence) -> list[float]:
        """Log-probabilities of a greedy answer, which come out of the decoder as zeros."""
        ids = [*sequence.prompt, *sequence.tokens]
        first = len(sequence.prompt) - 1
        hidden_TD = self._policy.hidden(mx.array([ids[:-1]]))[0, first:]
        targets_T = mx.array(ids[first + 1 :])
        scored_T = score(hidden_TD, self._policy.project, targets_T, temperature=1.0)
        return np.array(scored_T).tolist()


def require_user_turn(settings: LocalTeacher, folder: Path) -> None:
    """Raises BadInput for a checkpoint that Magpie has nothing to begin with."""
    prefix, _ = user_turn(load_tokens(model_of(settings), folder))
    if not prefix:
        raise BadInput(
            f"teacher.path: Magpie needs a chat template that says where the user's turn begins, "
            f"{settings.path} has none"
        )


def user_turn(tokens: Tokens) -> tuple[tuple[int, ...], int | None]:
    """Ids of the chat template up to where the user writes, and the one that ends the user's turn.

    No ids if the checkpoint has no template, or one that puts nothing there.
    """
    prompts = [tokens.prompt([{"role": "user", "content": probe}]) for probe in PROBES]
    prefix = _shared(prompts)
    suffix = _shared([p[::-1] for p in prompts])[::-1]
    return tuple(prefix), suffix[0] if suffix else None


def _shared(lists: list[list[int]]) -> list[int]:
    out: list[int] = []
    for items in zip(*lists):
        if len(set(items)) > 1:
            break
        out.append(items[0])
    return out
