"""Settings of preference learning: from pairs of answers, or from answers judged one by one."""

from collections.abc import Iterator
from typing import Annotated

from configs.algorithm import AlgorithmSettings
from configs.algorithms import register
from configs.facts import Facts
from configs.fields import Closed, NotNegative, up_to
from configs.preferences import Dpo, PreferenceLoss, is_paired, needs_reference
from configs.problems import (
    idle_samplers,
    missing_column,
    small_micro_batches,
    tag,
    unused_temperature,
)
from configs.run import Eval, RunSettings
from configs.tasks import Gsm8k, Jsonl, judges
from configs.wording import count

SAMPLED_EVAL = ("temperature", "samples", "sampled", "max_new_tokens", "top_p", "top_k", "min_p")
"""Settings of an evaluation that samples answers."""


class FromPairs(Closed, frozen=True, tag_field="name", tag="data"):
    """Offline: each row of the task has a preferred and a rejected answer, or one with a label."""


class FromPolicy(Closed, frozen=True, tag_field="name", tag="policy"):
    """Online: the policy answers each prompt, and the best answer by reward is preferred to the worst."""

    group_size: Annotated[int, up_to(4096, 2)] = 8
    """Answers to each prompt, of which two are learned from."""
    margin: NotNegative = 1e-4
    """A pair whose rewards differ by less tells nothing, and is dropped."""


@register
class Preference(AlgorithmSettings, frozen=True, tag="preference"):
    """Preference learning: the preferred answer is to become likelier than the rejected one."""

    prompts_per_step: Annotated[int, up_to(2**16)] = 16
    """Pairs of a step; with judged answers, rows."""
    learn_from: FromPairs | FromPolicy = FromPairs()
    loss: PreferenceLoss = Dpo()

    @property
    def is_online(self) -> bool:
        """The policy's own answers are compared."""
        return isinstance(self.learn_from, FromPolicy)

    def facts(self, run: RunSettings) -> Facts:
        """Returns what may be asked about a run of this algorithm."""
        answers = self._answers(run)
        return Facts(
            prompts_per_step=self.prompts_per_step,
            rows_per_step=self.prompts_per_step * answers,
            answers_per_prompt=answers,
            samples=self.is_online,
            reads_data=not self.is_online,
            reads_pairs=not self.is_online,
            paired=is_paired(self.loss),
            needs_reward=self.is_online,
            reference=needs_reference(self.loss),
            label=f"preference, {tag(self.loss)} from {tag(self.learn_from)}",
        )

    def _answers(self, run: RunSettings) -> int:
        """Returns the rows of one prompt. KTO has another prompt's answer beside each, to compare with."""
        if isinstance(self.learn_from, FromPolicy):
            return self.learn_from.group_size
        rows = 2 if self._unit(run) == "pair" else 1
        return rows if is_paired(self.loss) else rows + 1

    def _unit(self, run: RunSettings) -> str:
        """Returns what a row of data is: a pair, or one answer with a label."""
        labelled = isinstance(run.task, Jsonl) and bool(run.task.label)
        return "judged answer" if labelled else "pair"

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields what cannot work, or would have no effect, together."""
        yield from _loss(self)
        yield from _source(self, run)
        if self.is_online:
            yield from idle_samplers(run, "algorithm.prompts_per_step", self.prompts_per_step)
            yield from small_micro_batches(run)
        else:
            why = ": preference learning from data samples nothing; evaluation has eval.temperature"
            yield from unused_temperature(run, why)

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields what the numbers of the recipe mean."""
        prompts = self.prompts_per_step
        if isinstance(self.learn_from, FromPolicy):
            answers = prompts * self.learn_from.group_size
            yield (
                f"{count(prompts, 'prompt')} × {count(self.learn_from.group_size, 'answer')} = "
                f"{count(answers, 'answer')}; best against worst of each prompt = "
                f"{count(prompts, 'pair')} at most = 1 optimiser step."
            )
        else:
            unit = self._unit(run)
            yield f"{count(prompts, 'row')} = {count(prompts, unit)} = 1 optimiser step."
        yield f"{count(self.steps, 'step')} = {count(self.steps * prompts, self._unit(run))} in all."
        yield _compared_with(self)


def _compared_with(preference: Preference) -> str:
    """Returns what a recipe's loss needs beside the policy, in words."""
    if not needs_reference(preference.loss):
        return "The loss needs no reference model."
    computed = (
        "beside the policy's" if preference.is_online else "once for each row and kept in memory"
    )
    return (
        "The loss compares with the model before training, whose log-probabilities are computed "
        f"{computed}."
    )


def _loss(preference: Preference) -> Iterator[str]:
    loss = preference.loss
    if not is_paired(loss) and preference.is_online:
        yield (
            f'algorithm.loss.name = "{tag(loss)}" judges answers one by one: it needs '
            'algorithm.learn_from.name = "data", got "policy"'
        )
    if not is_paired(loss) and not preference.is_online and preference.prompts_per_step < 2:
        yield (
            f"algorithm.prompts_per_step = {preference.prompts_per_step} needs to be at least 2 with "
            f'algorithm.loss.name = "{tag(loss)}": each answer is also read behind another prompt'
        )
    if isinstance(loss, Dpo) and loss.robust and not 0 < loss.label_smoothing < 0.5:
        yield (
            "algorithm.loss.robust needs algorithm.loss.label_smoothing between 0 and 0.5, got "
            f"{loss.label_smoothing:g}: it corrects for that share of wrong labels"
        )


def _source(preference: Preference, run: RunSettings) -> Iterator[str]:
    task = run.task
    if preference.is_online:
        who = 'algorithm.learn_from.name = "policy"'
        yield from missing_column(run, "reward", who, "a Python file that scores answers")
        return
    if isinstance(task, Gsm8k):
        yield (
            'algorithm "preference" from data needs pairs of answers, which task "gsm8k" does not have: '
            'use algorithm.learn_from.name = "policy", or task "jsonl" with chosen and rejected'
        )
    if not isinstance(task, Jsonl):
        return
    yield from _unjudged(run, task)
    if task.label and is_paired(preference.loss):
        yield (
            f'task.label has no effect with algorithm.loss.name = "{tag(preference.loss)}", which needs '
            'pairs: "kto" learns from single answers'
        )
    elif not task.label and not (task.chosen and task.rejected):
        yield (
            'algorithm "preference" needs task.chosen and task.rejected, the columns with the two '
            "answers" + ("; or task.label" if not is_paired(preference.loss) else "")
        )


def _unjudged(run: RunSettings, task: Jsonl) -> Iterator[str]:
    """Yields a sentence for each setting of sampled answers that was set although no answer can be judged."""
    if judges(task) or not run.eval.prompts:
        return
    for name in SAMPLED_EVAL:
        if getattr(run.eval, name) != getattr(Eval(), name):
            yield (
                f"eval.{name} has no effect without task.reward: answers that nothing judges are not "
                "sampled, only the held-out pairs are compared"
            )
