"""A local checkpoint as a teacher: decoded in slots, a share of the questions under each GPU lease.

An answer is stored at the token that ends it; Ctrl-C stores what the others have so far, and they go on
from there with the draws that they would have had.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.data_schema import DataSampling
from configs.teachers import LocalTeacher
from ops.make.plan import INSTRUCTION
from ops.make.queries import queries, sampling_of
from ops.make.records import Answer, Question
from ops.make.teacher import Desk
from policies.device import bound_cache, gpu_lease
from policies.frozen import model_of
from policies.generators.local import LocalGenerator
from policies.generators.protocol import Answer as Generated
from policies.load import load_frozen, load_tokens
from policies.tokens import Tokens
from runtime.errors import BadInput
from runtime.trajectory import StopReason

LEASE_S = 1800.0
SLOTS_PER_LEASE = 8
"""Questions under one lease, in slots: other processes that wait for the GPU come in between."""
UNASKABLE = ("prompt_too_long", "prompt_empty")
"""Failures that are the question's fault, not the teacher's."""
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
        """Stores answers, and yields behind each share. Raises BadInput if no prompt could ever fit."""
        if self._policy.context_length - sampling.max_new_tokens < 1:
            raise BadInput(
                f"sampling.max_new_tokens: {sampling.max_new_tokens} leaves no room for a prompt in the "
                f"teacher's context of {self._policy.context_length} tokens"
            )
        generator = LocalGenerator(self._policy, sampling.slots)
        tokens_before = desk.progress.counts.tokens

        def may_continue() -> bool:
            desk.progress.counts.tokens = tokens_before + generator.sampled_tokens
            desk.progress.show()
            return not desk.stop.asked

        share = sampling.slots * SLOTS_PER_LEASE
        for start in range(0, len(questions), share):
            asked = queries(questions[start : start + share], desk.store, self._prefix)
            with (
                self._lease.hold("pippin make-data", LEASE_S),
                desk.stop.gently("writing down what the teacher has answered so far"),
            ):
                for made in generator.generate(asked, sampling_of(sampling), may_continue):
                    self._settle(made, desk)
                may_continue()  # shows the last tokens
            if desk.stop.asked:
                return
            yield

    def close(self) -> None:
        """Does nothing: the weights go with the process."""

    def _settle(self, made: Generated, desk: Desk) -> None:
        if made.interrupted:
            desk.interrupted(made.name, made.ids, made.logprobs)
            return
        if made.failure in UNASKABLE:
            desk.unaskable(made.name, made.failure, made.reason)
            return
        if made.failure:
            desk.missed(made.name, made.failure, made.reason, passing=False)
            return
        tokens, stop = self._policy.tokenizer, made.stop
        ids = [token for token in made.ids if token not in tokens.stop_tokens]
        if made.name.startswith(INSTRUCTION) and self._end in ids:
            ids, stop = ids[: ids.index(self._end)], StopReason.STOP
        text = tokens.decode(ids)
        if not text.strip():
            desk.missed(made.name, "empty", "the teacher ended at once", passing=False)
            return
        answer = Answer(name=made.name, text=text, stop=stop, tokens=len(ids), at=time.time())
        desk.took(answer)


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
