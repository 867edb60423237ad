"""Settings of evolution strategies."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec.structs import asdict

from configs.algorithm import AlgorithmSettings
from configs.algorithms import register
from configs.facts import Facts
from configs.fields import NotNegative, Positive, Text, up_to
from configs.perturbations import (
    RANK_SPREAD,
    AdamwStep,
    AnchorL2,
    AnchorSoft,
    Free,
    FullRank,
    Generation,
    LowRank,
    PlainStep,
)
from configs.problems import idle_samplers, missing_column, unused_temperature
from configs.run import Optimizer, RunSettings
from configs.wording import count

FAR_ABOVE = 2.0
"""The largest ratio of alpha to sigma without a note. Measured on small models: at 1 to 2 the run learns, at
5 the model gets worse, at 15 it is destroyed."""


@register
class Es(AlgorithmSettings, frozen=True, tag="es"):
    """Evolution strategies: perturbed weights are scored, and the noise is averaged by score."""

    population: Annotated[int, up_to(2**16, 2)] = 32
    """Members of a generation; an antithetic pair counts as two."""
    prompts_per_step: Annotated[int, up_to(2**16)] = 16
    """Prompts that each member answers; all members get the same ones."""
    fresh_prompts: bool = True
    """Takes new prompts for each generation; false: every generation gets the first one's prompts."""
    fitness: Literal["reward", "log_likelihood"] = "reward"
    """The score of a member: the task's reward, or the log-likelihood of the data's answers."""
    temperature: NotNegative = 0.0
    """Sampling temperature of the members' answers; 0 takes the likeliest token."""
    sigma: Positive = 1e-3
    """Standard deviation of each weight's noise."""
    antithetic: bool = True
    """Makes members in pairs with opposite noise."""
    perturbation: LowRank | FullRank = LowRank()
    noise: Literal["rademacher", "uniform", "normal"] = "rademacher"
    """The distribution of the noise: ±1 ("rademacher"), which makes the update exact on every machine;
    "uniform"; or a sum of four bytes ("normal")."""
    layers: Annotated[int, up_to(1000, -1)] = -1
    """Number of the last blocks that are perturbed; -1: all trained weights, with the embedding."""
    modules: list[Text] = []
    """Module names in a block, such as "self_attn.q_proj"; empty for all."""
    shaping: Literal["z_score", "centered_ranks", "group_mean"] = "z_score"
    """How scores become fitness: (score − mean) / standard deviation ("z_score"); ranks scaled to ±½
    ("centered_ranks"); or the score less its prompt's mean, over the standard deviation of all
    ("group_mean")."""
    update: PlainStep | AdamwStep = PlainStep()
    anchor: Free | AnchorL2 | AnchorSoft = Free()

    @property
    def _generation(self) -> Generation:
        """Returns the settings that the learner and the samplers use for a generation's noise."""
        own = asdict(self)
        return Generation(**{name: own[name] for name in Generation.__struct_fields__})

    def facts(self, run: RunSettings) -> Facts:
        """Returns the facts about this algorithm that the rest of Pippin uses."""
        rewarded = self.fitness == "reward"
        return Facts(
            prompts_per_step=self.prompts_per_step,
            rows_per_step=self.prompts_per_step * self.population,
            answers_per_prompt=self.population,
            fresh_prompts=self.fresh_prompts,
            samples=True,
            generation=self._generation,
            needs_response=not rewarded,
            needs_reward=True,
            gradients=False,
            optimizer=isinstance(self.update, AdamwStep),
            label="es",
        )

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields a sentence for each setting that cannot work, or has no effect, beside the others."""
        if self.antithetic and self.population % 2:
            yield (
                f"algorithm.population = {self.population} needs to be even with "
                "algorithm.antithetic = true: members come in pairs"
            )
        if self.layers == 0:
            yield "algorithm.layers = 0 perturbs nothing: use -1 for all blocks, or a number of them"
        yield from idle_samplers(run, "algorithm.population", self.population)
        why = ": members answer at algorithm.temperature, evaluation at eval.temperature"
        yield from unused_temperature(run, why)
        if isinstance(self.update, PlainStep) and run.optimizer != Optimizer():
            yield 'optimizer has no effect with algorithm.update.name = "plain": use "adamw"'
        yield from _fitness(self, run)

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields the sentences that explain the recipe's numbers."""
        trajectories = self.prompts_per_step * self.population
        pairs = f" ({self.population // 2} antithetic pairs)" if self.antithetic else ""
        what = "answer" if self.fitness == "reward" else "log-likelihood"
        yield (
            f"{count(self.population, 'member')}{pairs} × {count(self.prompts_per_step, 'prompt')} = "
            f"{count(trajectories, what)} = 1 step of the centre; {count(self.steps, 'generation')} = "
            f"{count(self.steps * trajectories, what)} in all."
        )
        yield _noise(self, run.sampling.slots)
        yield (
            "Members take the likeliest tokens, so sampled answers hardly change (see eval.sampled = true)."
            if self.temperature == 0
            else f"Members answer at temperature {self.temperature:g}."
        )
        yield from _warnings(self)


def _fitness(es: Es, run: RunSettings) -> Iterator[str]:
    fitness = f'algorithm.fitness = "{es.fitness}"'
    if es.fitness == "reward":
        yield from missing_column(run, "reward", fitness, "a Python file that scores answers")
        return
    yield from missing_column(run, "response", fitness, "the column with the answers")
    if es.temperature != 0.0:
        yield f"algorithm.temperature has no effect with {fitness}: nothing is sampled"


def _noise(es: Es, slots: int) -> str:
    if not isinstance(es.perturbation, LowRank):
        return "Full-rank noise: members are evaluated one after another, each from a copy of the master."
    together = max(min(slots // es.prompts_per_step, es.population), 1)
    return (
        f"Noise of rank {es.perturbation.rank}: members share each base product, and "
        f"{count(slots, 'slot')} hold the answers of about {count(together, 'member')} at once."
    )


def _warnings(es: Es) -> Iterator[str]:
    """Yields a note on settings that can run and will probably not learn."""
    if not isinstance(es.update, PlainStep):
        return
    spread = RANK_SPREAD if es.shaping == "centered_ranks" else 1.0
    ratio = es.update.alpha * spread / es.sigma
    if ratio > FAR_ABOVE:
        yield (
            f"Note: algorithm.update.alpha = {es.update.alpha:g} is far above "
            f"algorithm.sigma = {es.sigma:g}: "
            f"a step goes {ratio:.1f} sigma; runs with steps of up to {FAR_ABOVE:g} sigma were seen to learn."
        )
