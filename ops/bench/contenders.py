"""Ways to learn from rewards, side by side: each takes steps of its own on a policy of its own.

The work of a run's several processes is done here in one, so that the cost of a step can be measured
by the clock and by the processor alike. Evaluation is not counted.
"""

import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from configs.schema import Settings
from policies.algorithms import open_algorithm
from policies.algorithms.protocol import Sample
from policies.decode import Decoder, Sampling, Sequence
from policies.evolution.perturbation import members, perturbation
from policies.evolution.population import Population
from policies.load import load_policy
from policies.rows import encode, from_sequence
from policies.trainer import trainer_for
from runtime.keys import derive
from runtime.settlement import Row
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt, Verdict
from runtime.trajectory import StopReason, Trajectory, to_batch


class Accuracy(Struct, frozen=True, kw_only=True):
    """Holds the accuracy of some prompts' answers, with the standard error over the prompts."""

    greedy: float
    greedy_stderr: float
    sampled: float
    sampled_stderr: float


class Spent(Struct, kw_only=True):
    """Holds what learning has taken so far."""

    steps: int = 0
    tokens: int = 0
    """The number of sampled tokens."""
    clock_s: float = 0.0
    processor_s: float = 0.0


class Contender:
    """Learns `settings.task` from its checkpoint, by its algorithm.

    An algorithm that reads data stands for rejection sampling with the present policy (RAFT,
    2304.06767): `group_size` answers to each prompt of a step, and a step on one right answer of each.
    """

    def __init__(self, settings: Settings, group_size: int = 8) -> None:
        self.spent = Spent()
        self._settings = settings
        self._group_size = group_size
        self._task = open_task(settings.task, settings.seed)
        self.policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
        self._trainer = trainer_for(self.policy, settings)
        self._facts = settings.facts
        self._algorithm = open_algorithm(settings)
        if self._facts.generation is not None:
            self._perturbation = perturbation(self._facts.generation, self.policy)

    def step(self) -> None:
        """Takes one step, and adds its time and tokens to what was spent."""
        clock, processor = time.perf_counter(), time.process_time()
        step = self.spent.steps + 1
        rows = self._rows(step)
        self.spent.tokens += sum(sum(row.sampled) for row in rows)
        if self._facts.reads_data:
            rows = list(right_ones(rows))
        if rows:
            self._trainer.step(self._trainer.annotated(to_batch(rows)))
        self.spent.steps = step
        self.spent.clock_s += time.perf_counter() - clock
        self.spent.processor_s += time.process_time() - processor

    def held_out(self, count: int) -> list[Prompt]:
        """Returns prompts that nothing is learned from, the same ones for every contender."""
        return [self._task.prompt("eval", i) for i in range(count)]

    def accuracy(self, prompts: list[Prompt], samples: int) -> Accuracy:
        """Returns the accuracies of one greedy answer and of some sampled ones, with keys that do not
        depend on the step.
        """
        found = []
        for temperature, each in ((0.0, 1), (1.0, samples)):
            rows = self._answers(prompts, each, temperature, 0)
            share = [
                statistics.fmean(float(bool(row.passed)) for row in rows[i : i + each])
                for i in range(0, len(rows), each)
            ]
            found += [statistics.fmean(share), statistics.stdev(share) / math.sqrt(len(share))]
        return Accuracy(
            greedy=found[0], greedy_stderr=found[1], sampled=found[2], sampled_stderr=found[3]
        )

    def _rows(self, step: int) -> list[Trajectory]:
        facts = self._facts
        count = facts.prompts_per_step
        each = self._group_size if facts.reads_data else facts.answers_per_prompt
        first = (step - 1) * count
        prompts = [self._task.prompt("train", first + i) for i in range(count)]
        if facts.reads_data:
            return self._answers(prompts, each, self._settings.sampling.temperature, step)
        (request,) = self._algorithm.requests(step, prompts)
        assert isinstance(request, Sample)
        if facts.generation is None:
            return self._settled(self._answers(prompts, each, request.temperature, step))
        everyone = members(self._settings.seed, step, each, facts.generation.antithetic)
        with Population(self.policy, self._perturbation, everyone) as population:
            return self._settled(
                self._answers(prompts, each, request.temperature, step, population=population)
            )

    def _settled(self, rows: list[Trajectory]) -> list[Trajectory]:
        """Returns the rows with the algorithm's decisions about them."""
        settlement = self._algorithm.settle([row_of(row) for row in rows])
        return [
            msgspec.structs.replace(row, dropped=one.dropped, advantage=one.advantage)
            for row, one in zip(rows, settlement.rows)
        ]

    def _answers(
        self,
        prompts: list[Prompt],
        each: int,
        temperature: float,
        step: int,
        population: Population | None = None,
    ) -> list[Trajectory]:
        """Returns scored answers, in order of prompt and sample."""
        sampling = self._settings.sampling
        limit = self.policy.context_length - sampling.max_new_tokens
        seed, tokens = self._settings.seed, self.policy.tokenizer
        planned = [
            (
                prompt,
                i,
                Sequence(
                    prompt=encode(tokens, prompt, limit),
                    key=derive(seed, "bench", step, prompt.index, i),
                    member=i,
                ),
            )
            for prompt in prompts
            for i in range(each)
        ]
        decoder = Decoder(self.policy, sampling.slots, population.rows if population else None)
        how = Sampling(temperature=temperature, max_new_tokens=sampling.max_new_tokens)
        decoder.run([sequence for _, _, sequence in planned], how)
        rows = []
        for prompt, i, sequence in planned:
            row = from_sequence(
                tokens, prompt, sequence, step=step, sample=i, temperature=temperature
            )
            verdict = self._task.verify(prompt, row.text)
            rows.append(msgspec.structs.replace(row, reward=verdict.reward, passed=verdict.passed))
        return rows


def row_of(row: Trajectory) -> Row:
    """Returns what an algorithm knows of a trajectory that was judged."""
    return Row(
        prompt=row.prompt_index,
        sample=row.sample,
        tokens=sum(row.sampled),
        stop_reason=row.stop_reason,
        verdict=Verdict(reward=row.reward, passed=row.passed),
    )


def right_ones(rows: list[Trajectory]) -> Iterator[Trajectory]:
    """Yields the best answer to each prompt, the first of equals, if it is right: as a row to imitate."""
    best: dict[int, Trajectory] = {}
    for row in rows:
        known = best.get(row.prompt_index)
        if row.passed and (known is None or (row.reward or 0.0) > (known.reward or 0.0)):
            best[row.prompt_index] = row
    for row in best.values():
        yield msgspec.structs.replace(row, stop_reason=StopReason.DATA)
