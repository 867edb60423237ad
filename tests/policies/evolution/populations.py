"""What the tests of a population share: a small model, its members, their answers both ways."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from configs.algorithms.evolution import Es
from configs.model import Model
from configs.perturbations import Free, LowRank, PlainStep
from kernels.logprobs import score
from policies.decode import Decoder, Sampling, Sequence
from policies.evolution.centre import Centre
from policies.evolution.perturbation import Member, Perturbation, members, perturbation
from policies.evolution.population import Population
from policies.load import load_policy
from policies.policy import Policy
from runtime.keys import Stream, derive
from tests.policies.checkpoints import VOCABULARY, write

STOPS = frozenset(range(0, VOCABULARY, 24))
SIGMA = 0.02


def load(folder: Path, family: str = "qwen3", *, shift: float = 0.0, **settings: Any) -> Policy:
    """A small policy; `shift` moves its trained weights, so that fresh adapters do something."""
    if not folder.exists() or not any(folder.iterdir()):
        write(folder, family)
    policy = load_policy(Model(path=str(folder), **settings), folder, seed=0)
    policy.tokenizer.stop_tokens = STOPS
    if shift:
        policy.load_trained({k: w + shift for k, w in policy.trained().items()})
    return policy


def asked(policy: Policy, rank: int = 1, **settings: Any) -> Perturbation:
    settings.setdefault("sigma", SIGMA)
    return perturbation(Es(perturbation=LowRank(rank=rank), **settings), policy)


def centre(policy: Policy, which: Perturbation, alpha: float = 0.01, **settings: Any) -> Centre:
    return Centre(policy, which, PlainStep(alpha=alpha), settings.get("anchor", Free()))


def everyone(population: int = 8) -> list[Member]:
    return members(0, 3, population, antithetic=True)


def prompts(count: int, longest: int = 20) -> list[tuple[int, ...]]:
    stream = Stream("population", count)
    lengths = [stream.integer(1, longest) for _ in range(count)]
    return [tuple(stream.integer(0, VOCABULARY - 1) for _ in range(n)) for n in lengths]


def questions(population: int, count: int) -> list[Sequence]:
    """Every member's, by member."""
    return [
        Sequence(prompt=prompt, key=derive(member, i), member=member)
        for member in range(population)
        for i, prompt in enumerate(prompts(count))
    ]


def decode(
    policy: Policy,
    which: Perturbation,
    group: list[Sequence],
    slots: int,
    sampling: Sampling,
    who: list[Member] | None = None,
) -> list[Sequence]:
    with Population(policy, which, who or everyone()) as population:
        Decoder(policy, slots, population.rows).run(group, sampling)
    return group


def explicit_logprobs(policy: Policy, sequence: Sequence, temperature: float) -> np.ndarray:
    """Of what was sampled, by one pass with the weights that are in the model."""
    ids = [*sequence.prompt, *sequence.tokens]
    hidden = policy.hidden(mx.array([ids]))[0, len(sequence.prompt) - 1 : -1]
    targets = mx.array(sequence.tokens)
    return np.array(score(hidden, policy.project, targets, temperature=temperature))
