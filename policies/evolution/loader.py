"""The weight loader of evolution strategies: applies published terms to a centre, and decodes its members.

Low-rank members decode together in one batch. Full-rank members decode one after another, each from a copy
that is made from the master.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from itertools import groupby
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np

from configs.schema import Settings
from policies import weights
from policies.decode import BetweenTokens, Counts, Decoder, Sampling, Sequence
from policies.evolution.likelihood import log_likelihoods
from policies.evolution.perturbation import Member, members
from policies.evolution.population import Population
from policies.evolution.trainer import Step, centre_of, generation_of
from policies.policy import Policy
from runtime.errors import Damaged
from runtime.trajectory import StopReason, Trajectory
from runtime.versions import WeightsVersion


class EvolutionWeightLoader:
    """Brings a sampler's centre to the learner's versions, and decodes answers of a generation's members."""

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self._es, self._seed = generation_of(settings), settings.seed
        self._policy = policy
        self._slots = settings.sampling.slots
        self._perturbation, self._centre = centre_of(policy, settings)
        self._digest = ""

    def load(self, version: WeightsVersion) -> None:
        """Brings the centre to a version by the missing terms, or from the whole weights.

        Raises Damaged if the resulting weights do not have the version's digest.
        """
        if version.digest == self._digest:
            return
        steps = self._steps(version)
        known = next((i for i, step in enumerate(steps) if step.before == self._digest), None)
        if known is None:
            assert version.base is not None
            state = weights.load(Path(version.base.path), version.base.digest)
            self._centre.restore(state)
            known = 0
        for step in steps[known:]:
            self._centre.apply(step.terms)
        self._centre.into(self._policy)
        self._digest = weights.digest(self._policy.trained())
        if self._digest != version.digest:
            raise Damaged(
                f"{version.path}: needs the learner's digest {version.digest[:12]}… after replay, "
                f"got {self._digest[:12]}…"
            )

    def decode(
        self,
        generation: int,
        own_members: range,
        sequences: Items[Sequence],
        sampling: Sampling,
        version: int,
        between_tokens: BetweenTokens,
    ) -> Counts:
        """Continues sequences, each under the weights of its member.

        `own_members` is this sampler's range of the generation; `Sequence.member` is an index into it.
        """
        everyone = self._members(generation, own_members)
        if self._perturbation.rank:
            with Population(self._policy, self._perturbation, everyone) as population:
                decoder = Decoder(self._policy, self._slots, population.rows)
                decoder.run(sequences, sampling, version, between_tokens)
            return decoder.counts
        decoder = Decoder(self._policy, self._slots)
        for number, group in groupby(
            sorted(sequences, key=lambda s: s.member), key=lambda s: s.member
        ):
            unfinished = [sequence for sequence in group if not sequence.finished]
            if between_tokens() is None:  # so that no copy of the weights is made in vain
                for sequence in unfinished:
                    sequence.stop_reason = StopReason.INTERRUPTED
                continue
            with self._centre.member_in(self._policy, everyone[number]):
                decoder.run(unfinished, sampling, version, between_tokens)
            mx.clear_cache()
        return decoder.counts

    def likelihoods(
        self,
        generation: int,
        own_members: range,
        rows: Items[Trajectory],
        known: set[tuple[int, int]],
        may_go_on: Callable[[], bool],
    ) -> Iterator[Trajectory]:
        """Yields each row for each of `own_members`, with the mean log-likelihood of its answer as reward.

        The mean is over the answer's tokens. Pairs of prompt and member in `known` are left out. It ends
        early if `may_go_on` returns False. As many rows share a pass as there are slots.
        """
        everyone = self._members(generation, own_members)
        pairs = [
            (index, row)
            for index, member in enumerate(own_members)
            for row in rows
            if (row.prompt_index, member) not in known
        ]
        if self._perturbation.rank:
            with Population(self._policy, self._perturbation, everyone) as population:
                yield from self._likelihoods(pairs, own_members, population, may_go_on)
            return
        for index, member_pairs in groupby(pairs, key=lambda pair: pair[0]):
            if not may_go_on():
                return
            with self._centre.member_in(self._policy, everyone[index]):
                yield from self._likelihoods(list(member_pairs), own_members, None, may_go_on)

    def _likelihoods(
        self,
        pairs: Items[tuple[int, Trajectory]],
        own_members: range,
        population: Population | None,
        may_go_on: Callable[[], bool],
    ) -> Iterator[Trajectory]:
        for begin in range(0, len(pairs), self._slots):
            if not may_go_on():
                return
            some = pairs[begin : begin + self._slots]
            longest = max(len(row.tokens) for _, row in some)
            tokens_NT = np.zeros((len(some), longest), np.int32)
            answer_NT = np.zeros((len(some), longest), np.float32)
            for n, (_, row) in enumerate(some):
                tokens_NT[n, : len(row.tokens)] = row.tokens
                answer_NT[n, row.prompt_tokens : len(row.tokens)] = 1.0
            totals_N = log_likelihoods(
                self._policy,
                population,
                np.array([index for index, _ in some]),
                mx.array(tokens_NT),
                mx.array(answer_NT),
            )
            means_N = np.array(totals_N) / answer_NT.sum(axis=1)
            for (index, row), reward in zip(some, means_N.tolist()):
                yield msgspec.structs.replace(row, sample=own_members[index], reward=reward)

    def _members(self, generation: int, own_members: range) -> list[Member]:
        es = self._es
        everyone = members(self._seed, generation, es.population, es.antithetic)
        return everyone[own_members.start : own_members.stop]

    def _steps(self, version: WeightsVersion) -> list[Step]:
        """Returns the steps of the versions after the base, in order."""
        assert version.base is not None
        folder = Path(version.path).parent
        return [
            msgspec.json.decode((folder / f"v{n:06d}.json").read_bytes(), type=Step)
            for n in range(version.base.version + 1, version.version + 1)
        ]
