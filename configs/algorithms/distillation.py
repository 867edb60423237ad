"""Settings of distillation: whose answers are learned from, and what the teachers say about them."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from configs.algorithm import AlgorithmSettings
from configs.algorithms import register
from configs.facts import Facts
from configs.fields import Closed, NotNegative, Temperature, up_to
from configs.losses import Divergence, Forward, Jsd, Reverse
from configs.problems import (
    idle_samplers,
    missing_column,
    small_micro_batches,
    tag,
    unused_temperature,
)
from configs.run import RunSettings
from configs.tasks import Jsonl
from configs.teachers import EndpointTeacher, LocalTeacher, Teacher
from configs.wording import count


class FromStudent(Closed, frozen=True, tag_field="name", tag="student"):
    """On-policy: the student answers, the teacher says what it would have said (2306.13649)."""

    group_size: Annotated[int, up_to(4096)] = 1
    """Answers to each prompt."""
    reward: NotNegative = 0.0
    """Coefficient of the task's reward, less the group's mean, beside the teacher: RL with a
    teacher's KL. At 0 no reward is asked for."""
    divergence: Divergence = Reverse()


class FromData(Closed, frozen=True, tag_field="name", tag="data"):
    """Offline soft targets: (1 − alpha) cross-entropy + alpha divergence on the task's answers."""

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    divergence: Divergence = Forward()


class FromTeacher(Closed, frozen=True, tag_field="name", tag="teacher"):
    """Sequence-level (1606.07947): the teacher answers the prompts, once each, and is imitated."""

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the divergence beside the cross-entropy."""
    divergence: Divergence = Forward()


class Mixed(Closed, frozen=True, tag_field="name", tag="mixed"):
    """GKD: of each prompt the student's answer with this probability, else the data's."""

    student_share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    alpha: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of the divergence on the data's answers; the rest is cross-entropy."""
    divergence: Divergence = Jsd()


class WholeDistribution(Closed, frozen=True, tag_field="name", tag="full"):
    """The teacher's whole distribution: it is hosted in the learner's process."""

    temperature: Temperature = 1.0
    """Divides the logits of both; the gradient's scale stays."""


class TopK(Closed, frozen=True, tag_field="name", tag="top_k"):
    """Its k likeliest tokens, and the rest as one bucket."""

    k: Annotated[int, up_to(2**18)] = 64
    temperature: Temperature = 1.0


class SampledToken(Closed, frozen=True, tag_field="name", tag="sampled"):
    """Its log-probability of what the student sampled, as an advantage: reverse KL."""

    credit: Literal["token", "reward_to_go"] = "token"
    """Each token's own, or the mean of it and all later ones (MiniLLM, 2306.08543)."""
    whiten: bool = False
    """Less the mean and over the deviation of the step's tokens (MiniLLM)."""


class TextOnly(Closed, frozen=True, tag_field="name", tag="text"):
    """Only what it wrote: cross-entropy. Any tokenizer will do, and any endpoint."""


Source = FromStudent | FromData | FromTeacher | Mixed
Signal = WholeDistribution | TopK | SampledToken | TextOnly


@register
class Distill(AlgorithmSettings, frozen=True, kw_only=True, tag="distill"):
    """Distillation: a frozen teacher says of each token how likely it would have been."""

    prompts_per_step: Annotated[int, up_to(2**16)] = 32
    learn_from: Source = FromStudent()
    signal: Signal = WholeDistribution()
    teachers: dict[str, Teacher]
    """By name; with several, `task.teacher` says whose a row is."""
    cache_gb: Annotated[float, Meta(ge=0, le=1e5)] = 4.0
    """Bound of the teacher cache, which all runs on this machine share; 0 for none."""

    @property
    def is_hosted(self) -> bool:
        """The learner's process loads the teachers."""
        return isinstance(self.signal, WholeDistribution)

    @property
    def is_token_level(self) -> bool:
        """Teacher and student must share their tokens."""
        return not isinstance(self.signal, TextOnly)

    @property
    def student_samples(self) -> bool:
        """The student answers prompts to learn from."""
        return isinstance(self.learn_from, FromStudent | Mixed)

    @property
    def reads_data(self) -> bool:
        """The task's own answers are learned from."""
        return isinstance(self.learn_from, FromData | Mixed)

    @property
    def answers_per_prompt(self) -> int:
        """Trajectories of one prompt."""
        return self.learn_from.group_size if isinstance(self.learn_from, FromStudent) else 1

    @property
    def reward_coefficient(self) -> float:
        """What the task's reward weighs beside the teacher; 0: no reward is asked for."""
        return self.learn_from.reward if isinstance(self.learn_from, FromStudent) else 0.0

    def facts(self, run: RunSettings) -> Facts:
        """Returns what may be asked about a run of this algorithm."""
        signal = self.signal
        return Facts(
            prompts_per_step=self.prompts_per_step,
            rows_per_step=self.prompts_per_step * self.answers_per_prompt,
            answers_per_prompt=self.answers_per_prompt,
            samples=self.student_samples,
            reads_data=self.reads_data,
            needs_reward=self.reward_coefficient > 0,
            teachers=self.teachers,
            teachers_answer=isinstance(self.learn_from, FromTeacher),
            teachers_score=self.is_token_level and not self.is_hosted,
            hosts_teachers=self.is_hosted,
            shares_tokens=self.is_token_level,
            teacher_top_k=signal.k if isinstance(signal, TopK) else 0,
            teacher_temperature=(
                signal.temperature if isinstance(signal, TopK) else run.sampling.temperature
            ),
            teacher_cache_gb=self.cache_gb,
            compares_distributions=isinstance(signal, WholeDistribution | TopK),
            label=f"distill, from {tag(self.learn_from)}, {tag(signal)}",
        )

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields what cannot work, or would have no effect, together."""
        yield from _combination(self)
        yield from _teachers(self, run)
        yield from _task(self, run)
        if isinstance(self.learn_from, FromData):
            why = (
                ' with algorithm.learn_from.name = "data": nothing is sampled to learn from; '
                "evaluation has eval.temperature"
            )
            yield from unused_temperature(run, why)
        if self.student_samples:
            yield from idle_samplers(run, "algorithm.prompts_per_step", self.prompts_per_step)
        yield from small_micro_batches(run)

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields what the numbers of the recipe mean."""
        rows = self.prompts_per_step * self.answers_per_prompt
        yield f"{_whose(self)} = {count(rows, 'trajectory')} = 1 optimiser step."
        yield f"{count(self.steps, 'step')} = {count(self.steps * rows, 'trajectory')} in all."
        yield _signal(self)
        source = self.learn_from
        if not isinstance(source, FromStudent) and self.is_token_level and source.alpha < 1:
            yield (
                f"Answers that are not the student's weigh {1 - source.alpha:g} in the cross-entropy "
                f"and {source.alpha:g} in the divergence."
            )
        if self.reward_coefficient:
            yield (
                f"The task's reward, less its group's mean, weighs {self.reward_coefficient:g} beside "
                "the teacher."
            )
        if self.facts(run).asks_teachers and self.cache_gb:
            yield (
                f"What a teacher has said is kept in a cache of up to {self.cache_gb:g} GB that all "
                "runs share: it is not asked twice."
            )


# ── contradictions ───────────────────────────────────────────────────────────────────────────────


def _combination(distill: Distill) -> Iterator[str]:
    source, signal = distill.learn_from, distill.signal
    came = f'algorithm.learn_from.name = "{tag(source)}"'
    if isinstance(signal, TextOnly) and isinstance(source, FromData):
        yield (
            f'algorithm.signal.name = "text" needs no teacher with {came}: that is algorithm "sft"'
        )
    elif isinstance(signal, TextOnly) and not isinstance(source, FromTeacher):
        yield f'algorithm.signal.name = "text" needs algorithm.learn_from.name = "teacher", got {came}'
    if isinstance(signal, SampledToken) and not isinstance(source, FromStudent):
        yield (
            'algorithm.signal.name = "sampled" needs algorithm.learn_from.name = "student", got '
            f"{came}: it weighs what the student sampled"
        )
    if (
        isinstance(signal, SampledToken | TextOnly)
        and source.divergence != type(source)().divergence
    ):
        yield (
            f'algorithm.learn_from.divergence has no effect with algorithm.signal.name = "{tag(signal)}"'
            + (": it is reverse KL" if isinstance(signal, SampledToken) else "")
        )
    match source, signal:
        case FromTeacher(alpha=alpha), TextOnly() if alpha != FromTeacher().alpha:
            yield 'algorithm.learn_from.alpha has no effect with algorithm.signal.name = "text"'
    if isinstance(source, FromStudent) and source.reward and source.group_size < 2:
        yield (
            f"algorithm.learn_from.reward = {source.reward:g} needs algorithm.learn_from.group_size >= 2, "
            f"got {source.group_size}: an answer's reward is compared with the others'"
        )


def _teachers(distill: Distill, run: RunSettings) -> Iterator[str]:
    if not distill.teachers:
        yield "algorithm.teachers needs at least one table, such as [algorithm.teachers.big]"
    for name, teacher in distill.teachers.items():
        key = f"algorithm.teachers.{name}"
        if isinstance(teacher, EndpointTeacher) and distill.is_token_level:
            yield (
                f'{key} is an endpoint, which gives text only: algorithm.signal.name = "text" with '
                f'algorithm.learn_from.name = "teacher" is for it, got "{tag(distill.signal)}"'
            )
        if isinstance(teacher, LocalTeacher) and not isinstance(distill.learn_from, FromTeacher):
            for unused in ("chat_template", "system"):
                if getattr(teacher, unused):
                    yield (
                        f"{key}.{unused} has no effect: the teacher answers no prompts itself with "
                        f'algorithm.learn_from.name = "{tag(distill.learn_from)}"'
                    )
    named = isinstance(run.task, Jsonl) and run.task.teacher
    if len(distill.teachers) > 1 and not named:
        yield (
            f"algorithm.teachers has {len(distill.teachers)}, but task.teacher names no column that "
            "says whose a row is: the others would idle"
        )
    if len(distill.teachers) == 1 and named:
        yield "task.teacher has no effect: there is one teacher"
    if not distill.facts(run).asks_teachers and distill.cache_gb != Distill(teachers={}).cache_gb:
        yield 'algorithm.cache_gb has no effect with algorithm.signal.name = "full": nothing is stored'


def _task(distill: Distill, run: RunSettings) -> Iterator[str]:
    task = run.task
    if not isinstance(task, Jsonl):
        return
    rewarded = distill.reward_coefficient > 0
    if distill.reads_data:
        source = f'algorithm.learn_from.name = "{tag(distill.learn_from)}"'
        yield from missing_column(run, "response", source, "the column with the answers")
    if rewarded:
        yield from missing_column(
            run, "reward", "algorithm.learn_from.reward", "a Python file that scores answers"
        )
    if run.eval.prompts and not task.reward and not task.response:
        yield (
            f"eval.prompts = {run.eval.prompts} needs task.reward or task.response to judge "
            "answers by; 0 for no evaluation"
        )
    if not run.eval.prompts and task.reward and not rewarded:
        yield "task.reward has no effect: algorithm.learn_from asks for none, and eval.prompts = 0"
    if not run.eval.prompts and task.response and not distill.reads_data:
        yield "task.response has no effect: no data is learned from, and eval.prompts = 0"


# ── what it means ────────────────────────────────────────────────────────────────────────────────


def _whose(distill: Distill) -> str:
    """Returns whose answers one step learns from, in words."""
    prompts, each = distill.prompts_per_step, distill.answers_per_prompt
    match distill.learn_from:
        case FromStudent():
            times = f" {each} times" if each > 1 else ""
            return f"{count(prompts, 'prompt')}, each answered by the student{times}"
        case FromData():
            return f"{count(prompts, 'row')} of data"
        case FromTeacher():
            return f"{count(prompts, 'prompt')}, each answered once by its teacher"
        case Mixed(student_share=share):
            return (
                f"{count(prompts, 'prompt')}, answered by the student with probability {share:g} "
                "and by the data otherwise"
            )


def _signal(distill: Distill) -> str:
    """Returns what the teachers give, in words."""
    names = ", ".join(distill.teachers)
    chosen = tag(distill.learn_from.divergence).replace("_", " ")
    match distill.signal:
        case WholeDistribution():
            return (
                f"Signal: the {chosen} divergence from the whole distribution of {names}, hosted in the "
                "learner's process; no array of all tokens and the vocabulary is ever held."
            )
        case TopK(k=k):
            return (
                f"Signal: the {chosen} divergence from the {k} likeliest tokens of {names} and the "
                "rest as one bucket, sent along with each trajectory."
            )
        case SampledToken():
            return (
                f"Signal: what {names} thinks of each sampled token, as an advantage: an estimate of the "
                "reverse KL that is unbiased and noisy; the whole distribution learns faster."
            )
        case TextOnly():
            return f"Signal: the text of {names}, by cross-entropy; any tokenizer will do."
