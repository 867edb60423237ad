"""The trainer of evolution strategies: scores in, a step of the centre, keys and coefficients out.

A version is published as the terms that made it, a few hundred bytes, on top of whole weights that were
published when this learner began. A weight loader applies the terms to a centre of its own, which must then
have the same digest.
"""

import math
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct

from configs.perturbations import AdamwStep, Generation
from configs.schema import Settings
from policies import weights
from policies.algorithms import open_algorithm
from policies.arrays import Arrays
from policies.evolution.centre import Centre, Lineage, distance
from policies.evolution.fitness import combine
from policies.evolution.perturbation import Member, Perturbation, Term, members, perturbation
from policies.evolution.precision import problems
from policies.optimizers.registry import optimizer_for
from policies.policy import Policy
from policies.trainer import MayGoOn
from runtime.durable import write_file
from runtime.errors import BadInput, Damaged, Interrupted
from runtime.versions import Base, WeightsVersion

LINEAGE = "lineage.json"


class Step(Struct, frozen=True):
    """The content of a version's file: the terms that it adds to the previous version."""

    before: str
    """Digest of the trained weights of the previous version."""
    after: str
    """Digest of the trained weights of this version."""
    terms: list[Term]


def centre_of(policy: Policy, settings: Settings) -> tuple[Perturbation, Centre]:
    """Returns the perturbation by the settings, and a centre at the model's weights.

    Raises BadInput for a sigma or step that is lost in the rounding of these weights.
    """
    es = generation_of(settings)
    noise = perturbation(es, policy)
    centre = Centre(policy, noise, es.update, es.anchor)
    if isinstance(es.update, AdamwStep):
        centre.optimizer = optimizer_for(
            settings.optimizer, centre.master, settings.algorithm.steps
        )
    rate = settings.optimizer.learning_rate
    for sentence in problems(es, noise, centre.master, centre.dtypes, rate):
        raise BadInput(sentence)
    return noise, centre


def generation_of(settings: Settings) -> Generation:
    """Returns the settings of the run's generations."""
    generation = settings.facts.generation
    assert generation is not None, "evolution is trained by algorithms that have a generation"
    return generation


class EvolutionTrainer:
    """Moves the centre by a generation's scores."""

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self._es = generation_of(settings)
        self._algorithm = open_algorithm(settings)
        self._seed = settings.seed
        self._policy = policy
        self._start = {name: w for name, w in policy.trained().items()}
        """The base, from which the drift is measured; it shares the model's memory until the first step."""
        self._perturbation, self._centre = centre_of(policy, settings)
        self._lineage = Lineage(base=self._centre.base, generations=[])
        self._digest = self._centre.base
        self._base: Base | None = None

    def annotated(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the algorithm's annotation."""
        return self._algorithm.annotate(batch)

    def step(
        self, batch: pa.RecordBatch, may_go_on: MayGoOn = lambda updated: True
    ) -> dict[str, float]:
        """Takes one generation's step and returns its metrics.

        Raises Interrupted, before any change, if the run is asked to pause.
        """
        if not may_go_on(False):
            raise Interrupted("asked to pause before a generation's step")
        everyone, scores_NQ, ignored = self._scores(batch)
        combination = combine(everyone, scores_NQ, self._es.shaping, self._perturbation.rank)
        applied = self._centre.apply(combination.terms)
        self._centre.into(self._policy)
        self._lineage.generations.append(combination.terms)
        fitness_N = scores_NQ.mean(axis=1)
        fitness_N = fitness_N[np.isfinite(fitness_N)]
        return {
            "fitness_std": float(fitness_N.std()) if len(fitness_N) else 0.0,
            "fitness_best": float(fitness_N.max()) if len(fitness_N) else 0.0,
            "members_left_out": float(combination.left_out),
            "flat_generations": float(combination.flat),
            "results_ignored": float(ignored),
            "update_norm": applied.update_norm,
            "noise_norm": self._perturbation.sigma * math.sqrt(self._perturbation.size),
            "drift_norm": distance(self._centre.master, self._start),
            "learning_rate": applied.rate,
            "learner_tokens": 0.0,
        }

    def implied_rewards(
        self, batch: pa.RecordBatch, may_go_on: MayGoOn = lambda updated: True
    ) -> np.ndarray:
        """Raises TypeError: evolution strategies have no preference loss."""
        raise TypeError("evolution strategies have no preference loss")

    def publish(self, folder: Path, version: int, *, whole: bool) -> WeightsVersion:
        """Writes a version for weight loaders, as whole weights or as the terms of the last step."""
        digest = weights.digest(self._policy.trained())
        if whole:
            path = folder / f"v{version:06d}.safetensors"
            state = weights.save(path, self._centre.state())
            self._base = Base(version=version, path=str(path), digest=state)
        else:
            path = folder / f"v{version:06d}.json"
            step = Step(self._digest, digest, self._lineage.generations[-1])
            write_file(path, msgspec.json.encode(step), durable=False)
        self._digest = digest
        return WeightsVersion(version=version, path=str(path), digest=digest, base=self._base)

    def state(self) -> Arrays:
        """Returns the arrays of master and optimiser by name."""
        return self._centre.state()

    def put(self, folder: Path) -> None:
        """Writes the lineage beside a checkpoint's arrays; its replay from the base gives these arrays."""
        write_file(folder / LINEAGE, msgspec.json.encode(self._lineage), durable=False)

    def restore(self, state: Arrays, folder: Path) -> None:
        """Continues from a checkpoint's state; the model holds the checkpoint's weights already."""
        self._centre.restore(state)
        lineage = msgspec.json.decode((folder / LINEAGE).read_bytes(), type=Lineage)
        if lineage.base != self._centre.base:
            raise Damaged(
                f"{folder / LINEAGE}: needs base {self._centre.base[:12]}…, got {lineage.base[:12]}…"
            )
        self._lineage = lineage
        self._digest = weights.digest(self._policy.trained())

    def _scores(self, batch: pa.RecordBatch) -> tuple[list[Member], np.ndarray, int]:
        """Returns the generation's members, their rewards, and the number of ignored rows.

        Rewards are [members, prompts], NaN where there is none. A row is ignored if it is from an earlier
        generation, or a member's second answer to a prompt.
        """
        generation = max(batch["step"].to_pylist())
        everyone = members(self._seed, generation, self._es.population, self._es.antithetic)
        names = ("step", "prompt_index", "sample", "reward")
        rows = list(zip(*(batch[name].to_pylist() for name in names)))
        current = [row[1:] for row in rows if row[0] == generation]
        prompts = {p: i for i, p in enumerate(sorted({prompt for prompt, _, _ in current}))}
        scores_NQ = np.full((len(everyone), len(prompts)), np.nan)
        seen: set[tuple[int, int]] = set()
        for prompt, sample, reward in current:
            if reward is not None and (prompt, sample) not in seen:
                scores_NQ[sample, prompts[prompt]] = reward
            seen.add((prompt, sample))
        return everyone, scores_NQ, len(rows) - len(seen)
