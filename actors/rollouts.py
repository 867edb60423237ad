"""Collecting a step: prompts to samplers, batches to verifiers, verdicts back.

The batches stay where they are; what passes through here are references, verdicts and counts.
"""

import time
from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from actors.messages import Generate, Generated, Members, RunState, Scored, Unfinished
from actors.pool import ActorPool, together
from actors.verifier import give_up
from configs.schema import Distill, Es, Grpo, Settings, Sft
from policies.advantages import informative
from runtime import failpoints
from runtime.errors import Interrupted
from runtime.ledger import Ledger
from runtime.metrics import Meter, mean
from runtime.tasks.prompt import Prompt, Task, Verdict
from runtime.versions import WeightsVersion

T = TypeVar("T")
Part = tuple[Generated, Scored, Any]
"""One sampler's share: what it did, the verdicts, and the batch by reference."""
Work = tuple[str, int]
"""What answers are for: "sample" or "eval", and the step."""


class Collected(Struct, kw_only=True):
    """A step's batches, by reference, with what is known about their rows."""

    state: RunState
    """Where the run stands once this step is learned."""
    batches: list[Any] = field(default_factory=list)
    scored: list[Scored | None] = field(default_factory=list)
    dropped: list[list[str | None]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Rollouts:
    """Pulls prompts from the task's stream and has them answered and scored."""

    def __init__(self, settings: Settings, parts: ActorPool, task: Task) -> None:
        self._settings = settings
        self._pool = parts
        self._task = task
        self._failures: list[str] = []
        self._sampled: dict[Work, list[Any]] = {}
        """Batches of work that is not done, by reference: a pause makes them durable."""
        self._earlier: dict[Work, Any] = {}
        """What a pause had interrupted before, to be gone on with."""
        self._pulled: dict[int, int] = {}
        """Trajectories in flight, by step."""
        algorithm = settings.algorithm
        self._teacher = next(iter(algorithm.teachers)) if isinstance(algorithm, Distill) else ""
        """Of a row that names none."""

    def begin(self, earlier: dict[Work, Any]) -> None:
        """The run stands at a checkpoint again, which has these answers to later work."""
        self._sampled = {work: [batch] for work, batch in earlier.items()}
        self._earlier = earlier
        self._pulled = {}

    def done(self, purpose: str, step: int) -> None:
        """A step is learned, or an evaluation is noted: its answers are not unfinished any more."""
        self._sampled.pop((purpose, step), None)
        self._earlier.pop((purpose, step), None)
        if purpose == "sample":
            self._pulled.pop(step, None)

    def unfinished(self) -> tuple[list[Unfinished], list[Any]]:
        """All that was sampled for work that is not done: what it is, and the batches by reference."""
        works = [
            Unfinished(purpose=purpose, step=step, batches=len(batches))
            for (purpose, step), batches in self._sampled.items()
        ]
        return works, [batch for batches in self._sampled.values() for batch in batches]

    @property
    def in_flight(self) -> int:
        """Trajectories that were pulled and are not learned or dropped for good."""
        return sum(self._pulled.values())

    async def collect_data(self, step: int, state: RunState, sft: Sft) -> Collected:
        """The next rows to imitate. Rows that are too long for the model are dropped and counted."""
        prompts = self.pull(state.cursor, sft.rows_per_step)
        self._pulled[step] = len(prompts)
        dropped, batch = await self._pool.ask_two(
            "reader", 0, "read", step, prompts, what=f"the reader to read step {step}"
        )
        ledger = state.ledger.pull(len(prompts))
        ledger = ledger.settle(dropped.count(None), [reason for reason in dropped if reason])
        return Collected(
            state=RunState(step=step, cursor=state.cursor + len(prompts), ledger=ledger),
            batches=[batch],
            dropped=[dropped],
        )

    async def collect_samples(
        self, step: int, state: RunState, grpo: Grpo, version: WeightsVersion
    ) -> Collected:
        """Sample until enough groups tell something apart, or the rounds are used up."""
        sampling = self._settings.sampling

        def request(prompts: Sequence[Prompt]) -> Generate:
            return Generate(
                step=step,
                purpose="sample",
                prompts=list(prompts),
                group_size=grpo.group_size,
                weights=version,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
            )

        meter = Meter()
        collected = Collected(state=state)
        cursor, ledger, wanted = state.cursor, state.ledger, grpo.prompts_per_step
        for _ in range(grpo.resample_rounds + 1):
            prompts = self.pull(cursor, wanted)
            cursor += len(prompts)
            pulled = len(prompts) * grpo.group_size
            ledger = ledger.pull(pulled)
            self._pulled[step] = self._pulled.get(step, 0) + pulled
            meter.add("sample_rounds", 1)
            requests = [request(share) for share in self.split(prompts)]
            for _, scored, batch in await self.answer(
                requests, f"step {step}", meter, learning=True
            ):
                dropped, useful = sort_out(scored, grpo)
                wanted -= useful
                ledger = settle(ledger, scored, dropped)
                collected.batches.append(batch)
                collected.scored.append(scored)
                collected.dropped.append(dropped)
            if wanted <= 0:
                break
        failpoints.hit("step.collected")
        collected.state = RunState(step=step, cursor=cursor, ledger=ledger)
        meter.add("staleness_versions", step - 1 - version.version)
        collected.metrics = {**meter.values, **describe(collected, grpo)}
        return collected

    async def collect_population(
        self, step: int, state: RunState, es: Es, version: WeightsVersion
    ) -> Collected:
        """Every member of a generation answers the same prompts; members are split over the samplers."""
        first = state.cursor if es.fresh_prompts else 0
        prompts = self.pull(first, es.prompts_per_step)
        ledger = state.ledger.pull(len(prompts) * es.population)
        self._pulled[step] = len(prompts) * es.population
        requests = [
            Generate(
                step=step,
                purpose="sample",
                prompts=prompts,
                group_size=es.population,
                weights=version,
                temperature=es.temperature,
                max_new_tokens=self._settings.sampling.max_new_tokens,
                members=Members(first=share[0], count=len(share)),
            )
            for share in self.split(range(es.population))
        ]
        meter = Meter()
        parts = await self.answer(requests, f"generation {step}", meter, learning=True)
        failpoints.hit("step.collected")
        collected = Collected(state=state)
        for _, scored, batch in parts:
            dropped: list[str | None] = [None] * len(scored.verdicts)
            ledger = settle(ledger, scored, dropped)
            collected.batches.append(batch)
            collected.scored.append(scored)
            collected.dropped.append(dropped)
        cursor = state.cursor + (len(prompts) if es.fresh_prompts else 0)
        collected.state = RunState(step=step, cursor=cursor, ledger=ledger)
        collected.metrics = {**meter.values, **describe_answers(judged(collected))}
        return collected

    async def answer(
        self, requests: list[Generate], what: str, meter: Meter, *, learning: bool
    ) -> list[Part]:
        """Have each request answered by a sampler and scored as its answer comes; shares in order.

        Raises RunFailed if the verifier failed too many times in a row; Interrupted, once every sampler
        has handed over what it has, if somebody asks to pause.
        """

        async def one(i: int) -> Part:
            request = requests[i]
            work = (request.purpose, request.step)
            earlier = self.earlier(work)
            done, batch = await self._pool.ask_two(
                "sampler", i, "generate", request, *earlier, what=f"sampler-{i} to answer {what}"
            )
            self.keep(work, batch)
            if done.interrupted:
                raise Interrupted(f"paused while sampler-{i} answered {what}")
            judge = i % self._settings.actors.verifiers
            scored = await self._pool.ask(
                "verifier",
                judge,
                "score",
                batch,
                request.prompts,
                learning,
                what=f"verifier-{judge} to score {what}",
            )
            return done, scored, batch

        began = time.perf_counter()
        parts = await together(one(i) for i in range(len(requests)))
        for _, scored, _ in parts:
            self._watch(scored)
        meter.add("answer_s", time.perf_counter() - began)
        meter.add("sampler_busy_s", max(done.seconds for done, _, _ in parts))
        meter.add("sampler_tokens", sum(done.sampled_tokens for done, _, _ in parts))
        meter.add("verifier_busy_s", sum(scored.seconds for _, scored, _ in parts))
        meter.top("gpu_wait_s", max(done.waited_s for done, _, _ in parts))
        meter.add("weights_load_s", max(done.loaded_s for done, _, _ in parts))
        meter.top("sampler_memory_bytes", max(done.memory_bytes for done, _, _ in parts))
        return parts

    def split(self, items: Sequence[T]) -> list[Sequence[T]]:
        """A share for each sampler, in order, none of them empty."""
        count = min(self._settings.actors.samplers, len(items))
        return [
            items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)
        ]

    def pull(self, cursor: int, count: int) -> list[Prompt]:
        """The next prompts of the stream, each with its teacher if there are any."""
        prompts = [self._task.prompt("train", cursor + i) for i in range(count)]
        if not self._teacher:
            return prompts
        return [replace(prompt, teacher=prompt.teacher or self._teacher) for prompt in prompts]

    def begin_step(self, step: int, trajectories: int) -> None:
        """So many are pulled and in flight."""
        self._pulled[step] = trajectories

    def keep(self, work: Work, batch: Any) -> None:
        """What was made for work that is not done: a pause makes it durable."""
        self._sampled.setdefault(work, []).append(batch)

    def earlier(self, work: Work) -> list[Any]:
        """What a pause had interrupted, as arguments for who goes on with it."""
        return [self._earlier[work]] if work in self._earlier else []

    def _watch(self, scored: Scored) -> None:
        """Count failures in a row; stop at the limit with the first of them."""
        for verdict in scored.verdicts:
            if verdict.failure is None:
                self._failures.clear()
            else:
                self._failures.append(f"{verdict.failure}: {verdict.detail}")
                give_up(self._failures, self._settings.verifier.max_failures)


def sort_out(scored: Scored, grpo: Grpo) -> tuple[list[str | None], int]:
    """Why each row is not trained on (None for those that are), and how many groups are useful.

    Rows come in whole groups. A row without a verdict has no reason here: it counts as failed.
    """
    reasons: list[str | None] = []
    useful = 0
    for first in range(0, len(scored.verdicts), grpo.group_size):
        group = range(first, first + grpo.group_size)
        rewards = [r for i in group if (r := scored.verdicts[i].reward) is not None]
        reason = None
        if len(rewards) < 2:
            reason = "too_few_scored"
        elif grpo.drop_zero_variance and not informative(rewards, grpo.zero_variance_tolerance):
            reason = "zero_variance"
        useful += reason is None
        for i in group:
            cut = grpo.overlong.mask_truncated and scored.stop_reasons[i] == "length"
            failed = scored.verdicts[i].reward is None
            reasons.append(None if failed else reason or ("truncated" if cut else None))
    return reasons, useful


def settle(ledger: Ledger, scored: Scored, dropped: list[str | None]) -> Ledger:
    """The ledger once these rows are learned."""
    failures = [v.failure for v in scored.verdicts if v.failure is not None]
    reasons = [reason for reason in dropped if reason is not None]
    trained = len(dropped) - len(failures) - len(reasons)
    return ledger.settle(trained, reasons, failures)


def judged(collected: Collected) -> list[Scored]:
    """The verdicts of all batches that somebody judges."""
    return [scored for scored in collected.scored if scored is not None]


def describe_answers(scored: list[Scored]) -> dict[str, float]:
    """What answers were like, whoever gave them."""
    verdicts: list[Verdict] = [v for s in scored for v in s.verdicts]
    reasons = [r for s in scored for r in s.stop_reasons]
    lengths = [float(n) for s in scored for n in s.lengths]
    return {
        "reward_mean": mean([v.reward for v in verdicts if v.reward is not None]),
        "pass_at_1": mean([float(v.passed) for v in verdicts if v.passed is not None]),
        "failed_share": mean([float(v.failure is not None) for v in verdicts]),
        "completion_tokens_mean": mean(lengths),
        "stop_share": mean([float(r == "stop") for r in reasons]),
        "truncated_share": mean([float(r == "length") for r in reasons]),
    }


def describe(collected: Collected, grpo: Grpo) -> dict[str, float]:
    """What a step's answers were like."""
    scored = judged(collected)
    verdicts: list[Verdict] = [v for s in scored for v in s.verdicts]
    size = grpo.group_size
    groups = [verdicts[i : i + size] for i in range(0, len(verdicts), size)]
    flat = [
        not informative([v.reward for v in g if v.reward is not None], grpo.zero_variance_tolerance)
        for g in groups
    ]
    return {
        **describe_answers(scored),
        "zero_variance_share": mean([float(f) for f in flat]),
        "all_passed_share": mean([float(all(v.passed for v in g)) for g in groups]),
        "none_passed_share": mean([float(not any(v.passed for v in g)) for g in groups]),
    }
