"""Distillation: the student learns from a frozen teacher's probabilities, or from its answers.

    row                     policy gradient                   cross-entropy    divergence
    student's answer        teacher's and task's advantage    –                1
    data, teacher's text    –                                 1 − alpha        alpha

The source of the answers (`learn_from`) and the teacher outputs for them (`signal`) are settings. Together
they give on-policy distillation (GKD, 2306.13649; Thinking Machines 2025), offline soft targets (1503.02531)
and sequence-level distillation (1606.07947).
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from configs.algorithms.distillation import (
    Distill,
    FromData,
    FromStudent,
    FromTeacher,
    Mixed,
    SampledToken,
    TextOnly,
)
from configs.problems import tag
from configs.schema import Settings
from policies import teacher_advantages
from policies.advantages import advantages
from policies.algorithms import metrics, register
from policies.algorithms.protocol import AskTeacher, Read, Request, Sample
from policies.annotation import kept, per_token, with_annotation
from policies.terms import CrossEntropy, Divergence, PolicyGradient, Term
from runtime.metrics import mean
from runtime.settlement import Row, Settlement, groups, settled
from runtime.tasks.prompt import Prompt
from runtime.trajectory import StopReason, answer_positions, lists


@register(Distill)
class Distillation:
    """Requests rows from student, data or teacher, and weighs their tokens by the teacher outputs."""

    trainer = "policies.update:Updater"
    weight_loader = "policies.trainer:WholeWeightLoader"

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.algorithm, Distill)
        self._distill = settings.algorithm
        self._seed = settings.seed
        self._temperature = settings.sampling.temperature
        self._reward = self._distill.reward_coefficient
        self._scores_sampled = isinstance(self._distill.signal, SampledToken)

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────

    def requests(self, step: int, prompts: Sequence[Prompt]) -> list[Request]:
        """Returns which prompts the student, the data, or each prompt's own teacher answers."""
        match self._distill.learn_from:
            case FromStudent(group_size=answers):
                return [self._sample(prompts, answers)]
            case FromData():
                return [Read(prompts=prompts)]
            case FromTeacher():
                return [
                    AskTeacher(teacher=name, prompts=own)
                    for name in self._distill.teachers
                    if (own := [p for p in prompts if p.teacher == name])
                ]
            case Mixed(student_share=share):
                drawn = [self._is_students(share, step, prompt) for prompt in prompts]
                own = [prompt for prompt, chosen in zip(prompts, drawn) if chosen]
                data = [prompt for prompt, chosen in zip(prompts, drawn) if not chosen]
                sampled: list[Request] = [self._sample(own, 1)] if own else []
                return [*sampled, Read(prompts=data)] if data else sampled

    def _sample(self, prompts: Sequence[Prompt], answers: int) -> Request:
        return Sample(prompts=prompts, answers=answers, temperature=self._temperature)

    def _is_students(self, share: float, step: int, prompt: Prompt) -> bool:
        return teacher_advantages.from_student(share, self._seed, "gkd", step, prompt.index)

    def settle(self, rows: Sequence[Row]) -> Settlement:
        """Returns rewards and advantages if the recipe uses a reward; otherwise the rows as they are.

        A row whose reward is needed and missing counts as failed. A group with one reward is dropped.
        """
        if not self._reward:
            return Settlement(rows=[settled(row) for row in rows], useful_prompts=len(rows))
        dropped: list[str | None] = [row.dropped for row in rows]
        for group in groups(rows):
            if sum(rows[i].reward is not None for i in group) < 2:
                for i in group:
                    if rows[i].reward is not None:
                        dropped[i] = "too_few_scored"
        rewards_N = np.array([np.nan if r.reward is None else r.reward for r in rows])
        values_N = advantages(rewards_N, [row.prompt for row in rows], "group_mean")
        settled_rows = [
            settled(row, dropped=reason, advantage=None if np.isnan(value) else float(value))
            for row, reason, value in zip(rows, dropped, values_N)
        ]
        return Settlement(rows=settled_rows, useful_prompts=len(rows))

    def describe(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns metrics of the student's answers, and of their rewards if there are any."""
        judged = [row for row in rows if row.verdict is not None]
        found = metrics.of_lengths(judged) if judged else {}
        if any(row.reward is not None for row in judged):
            found |= metrics.of_rewards(judged)
        if isinstance(self._distill.learn_from, Mixed):
            own = [float(row.stop_reason != StopReason.DATA) for row in rows]
            found["student_share"] = mean(own)
        return found

    # ── what is learned ──────────────────────────────────────────────────────────────────────────

    def annotate(
        self, batch: pa.RecordBatch, reward_kl_N: np.ndarray | None = None
    ) -> pa.RecordBatch:
        """Returns the batch with the weights of the table in the module's docstring on its answer tokens."""
        used = self._used(batch)
        own = {i for i, imitated in used.items() if not imitated}
        ce, soft = self._imitated_weights()
        policy_gradient = self._policy_gradient(batch, own)
        divergence = 1.0 if self._compares else 0.0
        return with_annotation(
            batch,
            token_advantage=per_token(batch, {i: a for i, (a, _) in policy_gradient.items()}),
            policy_gradient_weight=per_token(
                batch, {i: w for i, (_, w) in policy_gradient.items()}
            ),
            cross_entropy_weight=per_token(batch, {i: 0.0 if i in own else ce for i in used}),
            divergence_weight=per_token(batch, {i: divergence if i in own else soft for i in used}),
        )

    def report(self, batch: pa.RecordBatch) -> dict[str, float]:
        """Returns the estimate of KL(student‖teacher) on sampled tokens if `signal` is "sampled", else {}."""
        if not self._scores_sampled:
            return {}
        log_ratios = _log_ratios(batch, answer_positions(batch))
        used = [log_ratios[i] for i, imitated in self._used(batch).items() if not imitated]
        if not used:
            return {}
        every = np.concatenate(used)
        unusable = int(np.isnan(every).sum())
        kl = -float(np.nanmean(every)) if unusable < len(every) else math.nan
        return {"divergence": kl, "unusable_tokens": unusable}

    def terms(self) -> list[Term]:
        """Returns the terms in which some row of this run can have a weight."""
        chosen = self._distill.learn_from.divergence
        terms: list[Term] = []
        if self._scores_sampled or self._reward:
            terms.append(PolicyGradient())
        if self._imitated_weights()[0]:
            counted = Divergence.weight if self._compares else CrossEntropy.weight
            terms.append(CrossEntropy(counted=counted))
        if self._compares:
            terms.append(
                Divergence(
                    kind=tag(chosen),  # type: ignore[arg-type]
                    beta=getattr(chosen, "beta", None),
                    skew=getattr(chosen, "skew", None),
                    temperature=self._distill.signal.temperature,  # type: ignore[union-attr]
                )
            )
        return terms

    @property
    def _compares(self) -> bool:
        """Returns whether the teacher's distributions are compared with the student's."""
        return not isinstance(self._distill.signal, SampledToken | TextOnly)

    def _imitated_weights(self) -> tuple[float, float]:
        """Returns the weights 1 − α and α of an imitated token in (1 − α) CE + α T² KL (1503.02531)."""
        source = self._distill.learn_from
        if isinstance(source, FromStudent):
            return 0.0, 0.0
        return (1 - source.alpha, source.alpha) if self._compares else (1.0, 0.0)

    def _used(self, batch: pa.RecordBatch) -> dict[int, bool]:
        """Returns the rows that are trained on, each with whether its answer is imitated."""
        columns = ("stop_reason", "author", "advantage")
        reasons, authors, values = (batch[name].to_pylist() for name in columns)
        used = {}
        for i in kept(batch):
            imitated = reasons[i] == StopReason.DATA or authors[i] is not None
            if imitated or not self._reward or values[i] is not None:
                used[i] = imitated
        return used

    def _policy_gradient(
        self, batch: pa.RecordBatch, own: set[int]
    ) -> dict[int, tuple[np.ndarray | float, np.ndarray | float]]:
        """Returns advantages (the task's plus the teacher's) and weights of the student's own answers."""
        if not (self._scores_sampled or self._reward):
            return {}
        values = batch["advantage"].to_pylist()
        task = {i: self._reward * values[i] if self._reward else 0.0 for i in sorted(own)}
        if not self._scores_sampled:
            return {i: (value, 1.0) for i, value in task.items()}
        teachers = self._teacher_advantages(batch, own)
        return {
            i: teacher_advantages.annotated(teacher_advantages.combined(task[i], teachers[i], 1.0))
            for i in task
        }

    def _teacher_advantages(self, batch: pa.RecordBatch, own: set[int]) -> dict[int, np.ndarray]:
        """Returns the teacher's advantage of each sampled token: its log-ratio, or the mean of later ones."""
        signal = self._distill.signal
        assert isinstance(signal, SampledToken)
        log_ratios = _log_ratios(batch, answer_positions(batch))
        used = {i: log_ratios[i] for i in sorted(own)}
        if signal.credit == "reward_to_go":
            used = {
                i: teacher_advantages.reward_to_go(r, length_normalized=True)
                for i, r in used.items()
            }
        if signal.whiten:
            used = dict(zip(used, teacher_advantages.whitened(list(used.values()))))
        return used


def _log_ratios(batch: pa.RecordBatch, positions: list[np.ndarray]) -> list[np.ndarray]:
    """Returns log t − log p of each answer's tokens; NaN for a token without a teacher output."""
    students, teachers = lists(batch, "logprobs"), lists(batch, "teacher_logprobs")
    scored = batch["teacher_logprobs"].is_valid().to_pylist()
    return [
        teacher_advantages.per_token(
            teachers[i][where] if scored[i] else np.full(len(where), np.nan), students[i][where]
        )
        for i, where in enumerate(positions)
    ]
