"""A teacher: a policy that is never trained and is asked how likely tokens would have been.

A token is known to it where it lies within its context and behind ids of its vocabulary only: a student
with a larger vocabulary may have sampled others. Elsewhere it says NaN, which trains nothing and is
counted; it never says zero.

Shapes: B rows of a micro-batch, T padded tokens, R targets, N = B·R, D hidden width, K kept ids.
"""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from configs.model import Model
from configs.schema import Settings
from configs.teachers import LocalTeacher
from kernels.logprobs import score
from kernels.teacher import Full, TopK, top_k
from policies.batch import MicroBatch
from policies.load import load_frozen
from policies.policy import Policy


class Frozen:
    """Scores micro-batches with its own weights."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def full(self, micro: MicroBatch) -> Full:
        """Its distribution at each of the N targets: hidden states, and the head to be applied."""
        hidden_ND, known_N = self._hidden(micro)
        nothing = mx.array(mx.nan, hidden_ND.dtype)
        return Full(mx.where(known_N[:, None], hidden_ND, nothing), self.policy.project)

    def top_k(self, micro: MicroBatch, k: int, temperature: float) -> TopK:
        """Its k likeliest ids at each of the N targets; NaN where the target is not known to it."""
        hidden_ND, known_N = self._hidden(micro)
        said = top_k(Full(hidden_ND, self.policy.project), k, temperature=temperature)
        logprobs_NK = mx.where(known_N[:, None], said.logprobs_NK, mx.nan)
        return TopK(said.ids_NK, logprobs_NK, said.tail_N, temperature)

    def logprobs(self, micro: MicroBatch, temperature: float) -> mx.array:
        """Log-probability [N] of each target; NaN where it is not known to it."""
        hidden_ND, known_N = self._hidden(micro)
        targets_N = micro.targets_BR.reshape(-1)
        inside_N = (targets_N >= 0) & (targets_N < self.policy.vocabulary)
        logprobs_N = score(
            hidden_ND,
            self.policy.project,
            mx.where(inside_N, targets_N, 0),
            temperature=temperature,
        )
        return mx.where(known_N & inside_N, logprobs_N, mx.nan)

    def _hidden(self, micro: MicroBatch) -> tuple[mx.array, mx.array]:
        """Hidden states [N, D] that predict the targets, and which of them stand for something [N]."""
        tokens_BT, sources_BR = micro.tokens_BT, micro.sources_BR
        inside_BT = (tokens_BT >= 0) & (tokens_BT < self.policy.vocabulary)
        # Bit for bit what a learner of the same weights computes, where all ids are known.
        hidden_BTD = self.policy.hidden(mx.where(inside_BT, tokens_BT, 0))
        hidden_BRD = mx.take_along_axis(hidden_BTD, sources_BR[..., None], axis=1)
        foreign_BT = mx.cumsum(mx.logical_not(inside_BT).astype(mx.int32), axis=1)
        known_BR = mx.take_along_axis(foreign_BT, sources_BR, axis=1) == 0
        known_BR = known_BR & (sources_BR < self.policy.context_length)
        return hidden_BRD.reshape(-1, hidden_BRD.shape[-1]), known_BR.reshape(-1)


def load_teacher(teacher: LocalTeacher) -> Frozen:
    """Load a local one. Raises BadInput for a checkpoint that cannot be used."""
    return Frozen(load_frozen(model_of(teacher), Path(teacher.path)))


def model_of(teacher: LocalTeacher) -> Model:
    """Its checkpoint's settings, as those of a model."""
    return Model(
        path=teacher.path,
        quantize_bits=teacher.quantize_bits,
        dtype=teacher.dtype,
        chat_template=teacher.chat_template,
        system=teacher.system,
    )


def hosted(settings: Settings) -> Mapping[str, Frozen]:
    """Returns the teachers that the learner's process has to load, by name; none for most runs."""
    facts = settings.facts
    if not facts.hosts_teachers:
        return {}
    local = {n: t for n, t in facts.teachers.items() if isinstance(t, LocalTeacher)}
    return {name: load_teacher(teacher) for name, teacher in local.items()}
