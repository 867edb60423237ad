"""Settings of GRPO and its family. A variant such as DAPO is a recipe, not code."""

from collections.abc import Iterator
from typing import Annotated, Literal

from configs.algorithm import AlgorithmSettings
from configs.algorithms import register
from configs.facts import Facts
from configs.fields import Closed, NotNegative, up_to
from configs.losses import Bypass, Clip, Correction, Gspo, Kl, Reinforce, Surrogate
from configs.problems import idle_samplers, missing_column, small_micro_batches, tag
from configs.run import RunSettings, Sampling
from configs.tasks import Jsonl
from configs.wording import count


class Overlong(Closed, frozen=True):
    """Penalty and mask for answers that approach or reach the length limit (DAPO)."""

    penalty_tokens: Annotated[int, up_to(2**20, 0)] = 0
    """Length of the zone before the limit in which the penalty grows from 0 to `penalty`."""
    penalty: NotNegative = 1.0
    mask_truncated: bool = False
    """Gives truncated answers no gradient; their reward still counts in the group's mean."""


@register
class Grpo(AlgorithmSettings, frozen=True, tag="grpo"):
    """Group-relative policy optimisation and its family; a variant is a recipe."""

    prompts_per_step: Annotated[int, up_to(2**16)] = 16
    group_size: Annotated[int, up_to(4096, 2)] = 8
    """Samples of each prompt."""
    updates_per_step: Annotated[int, up_to(1024)] = 1
    """Optimiser steps on each batch of trajectories, each over a share of the groups."""
    advantage: Literal["group_mean", "group_std", "rloo", "batch_std"] = "group_mean"
    surrogate: Surrogate = Clip()
    correction: Correction = Bypass()
    normalizer: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """The divisor of the sum over tokens: the step's tokens ("token_mean"); each sequence's own tokens, then
    the number of sequences ("sequence_mean"); or sequences × max_new_tokens ("constant"; Dr. GRPO)."""
    kl: Kl = Kl()
    overlong: Overlong = Overlong()
    entropy_bonus: NotNegative = 0.0
    drop_zero_variance: bool = True
    zero_variance_tolerance: NotNegative = 1e-4
    """Largest difference between a group's rewards at which the group counts as all equal."""
    resample_rounds: Annotated[int, up_to(1000, 0)] = 0
    """Rounds of a step in which new prompts replace dropped groups (DAPO's dynamic sampling); 0: none."""
    max_lag: Annotated[int, up_to(16, 0)] = 0
    """Weights versions by which sampling may be behind: 0 waits for each step, 1 overlaps with one."""

    def facts(self, run: RunSettings) -> Facts:
        """Returns the facts about this algorithm that the rest of Pippin uses."""
        return Facts(
            prompts_per_step=self.prompts_per_step,
            rows_per_step=self.prompts_per_step * self.group_size,
            answers_per_prompt=self.group_size,
            rounds=self.resample_rounds + 1,
            updates_per_step=self.updates_per_step,
            max_lag=self.max_lag,
            samples=True,
            needs_reward=True,
            reward_kl=self.kl.coefficient if self.kl.placement == "reward_k1" else 0.0,
            reference=self.kl.coefficient > 0,
            label="grpo",
        )

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields a sentence for each setting that cannot work, or has no effect, beside the others."""
        yield from _task(run)
        yield from _surrogate(self)
        if self.updates_per_step > self.prompts_per_step:
            yield (
                f"algorithm.updates_per_step = {self.updates_per_step} needs at least as many "
                f"algorithm.prompts_per_step, got {self.prompts_per_step}: "
                "each update takes a share of the groups"
            )
        if self.kl.coefficient == 0 and self.kl.placement != Kl().placement:
            yield "algorithm.kl.placement has no effect while algorithm.kl.coefficient is 0"
        yield from _overlong(self.overlong, run.sampling)
        if self.resample_rounds and not self.drop_zero_variance:
            yield (
                f"algorithm.resample_rounds = {self.resample_rounds} needs "
                "algorithm.drop_zero_variance = true: only dropped groups are replaced"
            )
        yield from idle_samplers(run, "algorithm.prompts_per_step", self.prompts_per_step)
        yield from small_micro_batches(run)

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields the sentences that explain the recipe's numbers."""
        prompts, trajectories = self.prompts_per_step, self.prompts_per_step * self.group_size
        updates = self.updates_per_step
        yield (
            f"{count(prompts, 'prompt')} × {count(self.group_size, 'sample')} = "
            f"{count(trajectories, 'trajectory')} = {count(updates, 'optimiser step')} "
            f"({trajectories * run.sampling.max_new_tokens:,} sampled tokens at most)."
        )
        if updates > 1:
            low, high = prompts // updates, -(-prompts // updates)
            groups = f"{low}" if low == high else f"{low} or {high}"
            yield (
                f"Each of the {updates} optimiser steps takes {groups} of the {prompts} groups; "
                "from the second on the trajectories are off-policy."
            )
        yield (
            f"{count(self.steps, 'step')} = {count(self.steps * updates, 'optimiser step')} on "
            f"{count(self.steps * trajectories, 'trajectory')} of "
            f"{count(self.steps * prompts, 'prompt')} in all."
        )
        yield _lag(self)
        yield _zero_variance(self)
        if self.is_uncorrected:
            yield (
                'Note: surrogate "reinforce" has no ratio and correction "bypass" adds none, so '
                "off-policy trajectories bias its gradient; truncate or mask corrects it."
            )

    @property
    def is_uncorrected(self) -> bool:
        """Returns whether off-policy trajectories are learned from with neither ratio nor correction."""
        has_ratio = not isinstance(self.surrogate, Reinforce)
        off_policy = self.max_lag > 0 or self.updates_per_step > 1
        return off_policy and not has_ratio and isinstance(self.correction, Bypass)


def _task(run: RunSettings) -> Iterator[str]:
    yield from missing_column(
        run, "reward", 'algorithm "grpo"', "a Python file that scores answers"
    )
    if isinstance(run.task, Jsonl) and run.task.response:
        yield 'task.response has no effect: algorithm "grpo" imitates no answers'


def _surrogate(grpo: Grpo) -> Iterator[str]:
    surrogate = grpo.surrogate
    if isinstance(surrogate, Gspo) and grpo.normalizer != "sequence_mean":
        yield (
            'algorithm.surrogate "gspo" needs algorithm.normalizer = "sequence_mean", got '
            f'"{grpo.normalizer}": its ratio is one per sequence'
        )
    if isinstance(surrogate, Clip) and 0 < surrogate.dual <= 1:
        yield (
            "algorithm.surrogate.dual needs a ratio > 1, or 0 for none, got "
            f"{surrogate.dual}: it would bound the loss of a policy that has not moved"
        )


def _overlong(overlong: Overlong, sampling: Sampling) -> Iterator[str]:
    zone = overlong.penalty_tokens
    if zone >= sampling.max_new_tokens:
        yield (
            f"algorithm.overlong.penalty_tokens = {zone} must be less than "
            f"sampling.max_new_tokens = {sampling.max_new_tokens}: "
            "otherwise every answer is too long"
        )
    if zone and not overlong.penalty:
        yield "algorithm.overlong.penalty_tokens has no effect while the penalty is 0"
    if not zone and overlong.penalty != Overlong().penalty:
        yield "algorithm.overlong.penalty has no effect while penalty_tokens is 0"


def _lag(grpo: Grpo) -> str:
    if grpo.max_lag == 0:
        return "Lag 0: each step samples with the weights that it trains; nothing is stale."
    return (
        f"Lag {grpo.max_lag}: sampling may be {count(grpo.max_lag, 'weights version')} behind, "
        f'and the "{tag(grpo.correction)}" correction accounts for it.'
    )


def _zero_variance(grpo: Grpo) -> str:
    if not grpo.drop_zero_variance:
        return "Groups whose rewards are all equal stay in the batch, with advantages of 0."
    if not grpo.resample_rounds:
        return (
            "Groups whose rewards are all equal are dropped and counted, and not replaced: "
            "a step may train on fewer trajectories."
        )
    prompts = grpo.prompts_per_step * (1 + grpo.resample_rounds)
    return (
        f"Dropped groups are replaced in up to {count(grpo.resample_rounds, 'round')}: at worst "
        f"{count(prompts, 'prompt')} = {count(prompts * grpo.group_size, 'trajectory')} are "
        "sampled for a step."
    )
