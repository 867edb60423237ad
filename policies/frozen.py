"""A teacher: a policy that is never trained, and gives probabilities of given tokens.

The teacher knows a position if it lies within the teacher's context and follows only ids of the teacher's
vocabulary; a student with a larger vocabulary may have sampled other ids. Teacher outputs at other positions
are NaN, never zero; they train nothing and are counted.

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
    """Scores micro-batches with a teacher's weights."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def full(self, micro: MicroBatch) -> Full:
        """Returns the distribution at each of the N targets as hidden states and the head to apply."""
        hidden_ND, known_N = self._hidden(micro)
        nothing = mx.array(mx.nan, hidden_ND.dtype)
        return Full(mx.where(known_N[:, None], hidden_ND, nothing), self.policy.project)

    def top_k(self, micro: MicroBatch, k: int, temperature: float) -> TopK:
        """Returns the k likeliest ids at each of the N targets, with NaN at unknown positions."""
        hidden_ND, known_N = self._hidden(micro)
        likeliest = top_k(Full(hidden_ND, self.policy.project), k, temperature=temperature)
        logprobs_NK = mx.where(known_N[:, None], likeliest.logprobs_NK, mx.nan)
        return TopK(likeliest.ids_NK, logprobs_NK, likeliest.tail_N, temperature)

    def logprobs(self, micro: MicroBatch, temperature: float) -> mx.array:
        """Returns the log-probability [N] of each target; NaN at unknown positions."""
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
        """Returns the hidden states [N, D] that predict the targets, and which positions are known, [N]."""
        tokens_BT, sources_BR = micro.tokens_BT, micro.sources_BR
        inside_BT = (tokens_BT >= 0) & (tokens_BT < self.policy.vocabulary)
        # If all ids are known, the result is bit for bit that of a learner with the same weights.
        hidden_BTD = self.policy.hidden(mx.where(inside_BT, tokens_BT, 0))
        hidden_BRD = mx.take_along_axis(hidden_BTD, sources_BR[..., None], axis=1)
        foreign_BT = mx.cumsum(mx.logical_not(inside_BT).astype(mx.int32), axis=1)
        known_BR = mx.take_along_axis(foreign_BT, sources_BR, axis=1) == 0
        known_BR = known_BR & (sources_BR < self.policy.context_length)
        return hidden_BRD.reshape(-1, hidden_BRD.shape[-1]), known_BR.reshape(-1)


def load_teacher(teacher: LocalTeacher) -> Frozen:
    """Loads a local teacher. Raises BadInput for a checkpoint that cannot be used."""
    return Frozen(load_frozen(model_of(teacher), Path(teacher.path)))


def model_of(teacher: LocalTeacher) -> Model:
    """Returns a teacher's settings as those of a model."""
    return Model(
        path=teacher.path,
        quantize_bits=teacher.quantize_bits,
        dtype=teacher.dtype,
        chat_template=teacher.chat_template,
        system=teacher.system,
    )


def hosted(settings: Settings) -> Mapping[str, Frozen]:
    """Loads the teachers that the learner's process hosts and returns them by name; most runs have none."""
    facts = settings.facts
    if not facts.hosts_teachers:
        return {}
    local = {n: t for n, t in facts.teachers.items() if isinstance(t, LocalTeacher)}
    return {name: load_teacher(teacher) for name, teacher in local.items()}
