"""The divergence of a micro-batch from its teacher's distributions.

A hosted teacher runs here, outside of the gradient; the top-k outputs of a teacher actor come with the rows.

Shapes: B rows of a micro-batch, R padded targets, N = B·R, D hidden width, K kept ids.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx

from kernels.divergence import Divergence as Kind
from kernels.teacher import Teacher, TopK
from policies.batch import MicroBatch
from policies.frozen import Frozen
from policies.objectives.divergence import Signal, signal
from policies.policy import Policy
from policies.terms import Divergence, Term


class TeacherSignal:
    """Computes the divergence from a teacher if one of the loss terms is a divergence."""

    def __init__(
        self, policy: Policy, terms: Sequence[Term], teachers: Mapping[str, Frozen]
    ) -> None:
        self._policy = policy
        self._teachers = teachers
        self._term = next((term for term in terms if isinstance(term, Divergence)), None)
        self._teacher: Teacher | None = None

    def prepare(self, micro: MicroBatch) -> None:
        """Computes the teacher outputs of a micro-batch before its gradient is taken."""
        self._teacher = None if self._term is None else self._of(micro, self._term)

    def compared(self, micro: MicroBatch, hidden_ND: mx.array) -> Signal | None:
        """Returns the divergence at each target; None if no term needs one."""
        if self._term is None or self._teacher is None:
            return None
        kind = Kind(
            kind=self._term.kind,
            beta=self._term.beta,
            skew=self._term.skew,
            temperature=self._term.temperature,
        )
        return signal(
            hidden_ND,
            self._policy.project,
            self._policy.head_weights(),
            self._teacher,
            kind,
            micro.columns[self._term.weight],
        )

    def _of(self, micro: MicroBatch, term: Divergence) -> Teacher:
        columns = micro.columns
        if "teacher_ids" not in columns:
            full = self._teachers[micro.teacher].full(micro)
            mx.eval(full.hidden_ND)
            return full
        ids_BRK = columns["teacher_ids"]
        shape = (-1, ids_BRK.shape[-1])
        return TopK(
            ids_BRK.reshape(shape),
            columns["teacher_id_logprobs"].reshape(shape),
            columns["teacher_tail"].reshape(-1),
            term.temperature,
        )
