"""Settings of distillation: the answers that are learned from, and the teacher outputs for them."""

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
    """On-policy: the student answers, and the teacher scores each token of its answers (2306.13649)."""

    group_size: Annotated[int, up_to(4096)] = 1
    """Answers to each prompt."""
    reward: NotNegative = 0.0
    """Coefficient of the task's reward, less the group's mean, which is added to the teacher's term: RL
    with a KL to the teacher. At 0 no reward is computed."""
    divergence: Divergence = Reverse()


class FromData(Closed, frozen=True, tag_field="name", tag="data"):
    """Offline soft targets: (1 − alpha) cross-entropy + alpha divergence on the task's answers."""

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    divergence: Divergence = Forward()


class FromTeacher(Closed, frozen=True, tag_field="name", tag="teacher"):
    """Sequence-level (1606.07947): the teacher answers each prompt once, and the student imitates it."""

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the divergence in the loss; the rest is cross-entropy."""
    divergence: Divergence = Forward()


class Mixed(Closed, frozen=True, tag_field="name", tag="mixed"):
    """GKD: the answer to a prompt is the student's with a fixed probability, otherwise the data's."""

    student_share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """Probability that the student answers a prompt."""
    alpha: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of the divergence on the data's answers; the rest is cross-entropy."""
    divergence: Divergence = Jsd()


class WholeDistribution(Closed, frozen=True, tag_field="name", tag="full"):
    """The teacher's whole distribution; the learner's process hosts the teacher."""

    temperature: Temperature = 1.0
    """Divides the logits of student and teacher; the scale of the gradient stays."""


class TopK(Closed, frozen=True, tag_field="name", tag="top_k"):
    """The teacher's k likeliest tokens, and all the others as one bucket."""

    k: Annotated[int, up_to(2**18)] = 64
    temperature: Temperature = 1.0


class SampledToken(Closed, frozen=True, tag_field="name", tag="sampled"):
    """The teacher's log-probability of each sampled token, as an advantage: reverse KL."""

    credit: Literal["token", "reward_to_go"] = "token"
    """The signal of a token: its own log-ratio ("token"), or the mean of its own and all later ones
    ("reward_to_go"; MiniLLM, 2306.08543)."""
    whiten: bool = False
    """Subtracts the mean of the step's tokens and divides by their standard deviation (MiniLLM)."""


class TextOnly(Closed, frozen=True, tag_field="name", tag="text"):
    """Only the text of the teacher's answers, by cross-entropy: any tokenizer and any endpoint will do."""


Source = FromStudent | FromData | FromTeacher | Mixed
Signal = WholeDistribution | TopK | SampledToken | TextOnly


@register
class Distill(AlgorithmSettings, frozen=True, kw_only=True, tag="distill"):
    """Distillation: the student learns from a frozen teacher's probabilities, or from its answers."""

    prompts_per_step: Annotated[int, up_to(2**16)] = 32
    learn_from: Source = FromStudent()
    signal: Signal = WholeDistribution()
    teachers: dict[str, Teacher]
    """The teachers by name; with several, the column `task.teacher` names the teacher of each row."""
    cache_gb: Annotated[float, Meta(ge=0, le=1e5)] = 4.0
    """Largest size in GB of the teacher cache, which all runs on this machine share; 0 for none."""

    @property
    def is_hosted(self) -> bool:
        """Returns whether the learner's process loads the teachers."""
        return isinstance(self.signal, WholeDistribution)

    @property
    def is_token_level(self) -> bool:
        """Returns whether teacher and student need the same tokens."""
        return not isinstance(self.signal, TextOnly)

    @property
    def student_samples(self) -> bool:
        """Returns whether the student answers prompts to learn from."""
        return isinstance(self.learn_from, FromStudent | Mixed)

    @property
    def reads_data(self) -> bool:
        """Returns whether the student learns from the answers in the task's data."""
        return isinstance(self.learn_from, FromData | Mixed)

    @property
    def answers_per_prompt(self) -> int:
        """Returns the number of trajectories of each prompt."""
        return self.learn_from.group_size if isinstance(self.learn_from, FromStudent) else 1

    @property
    def reward_coefficient(self) -> float:
        """Returns the coefficient of the task's reward in the loss; at 0 no reward is computed."""
        return self.learn_from.reward if isinstance(self.learn_from, FromStudent) else 0.0

    def facts(self, run: RunSettings) -> Facts:
        """Returns the facts about this algorithm that the rest of Pippin uses."""
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
        """Yields a sentence for each setting that cannot work, or has no effect, beside the others."""
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
        """Yields the sentences that explain the recipe's numbers."""
        rows = self.prompts_per_step * self.answers_per_prompt
        yield f"{_sources(self)} = {count(rows, 'trajectory')} = 1 optimiser step."
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
                "The task's reward, less its group's mean, is added to the teacher's signal with the "
                f"coefficient {self.reward_coefficient:g}."
            )
        if self.facts(run).asks_teachers and self.cache_gb:
            yield (
                f"Teacher outputs are kept in a cache of up to {self.cache_gb:g} GB that all runs "
                "share: no output is computed twice."
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
            f"{came}: it scores the tokens that the student sampled"
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
            "names the teacher of each row: the others would idle"
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


def _sources(distill: Distill) -> str:
    """Returns a phrase for the answers that one step learns from, and where they come from."""
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
    """Returns a sentence for the teacher outputs that the loss uses."""
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
                f"Signal: the log-probability of {names} for each sampled token, as an advantage: an "
                "estimate of the reverse KL that is unbiased and noisy; the whole distribution learns faster."
            )
        case TextOnly():
            return f"Signal: the text of {names}, by cross-entropy; any tokenizer will do."
