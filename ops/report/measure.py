"""Measures each contestant: quality, perplexity, speed, memory.

One model is in memory at a time, so that its peak is its own and a machine that could train the student
can measure it. For speed every contestant takes a turn in each round, another one first each time, and
decodes as many tokens of the same prompts, whatever their stop tokens. Other work of the machine then slows
all of them.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from msgspec import Struct

from ops.report.contestants import Contestant
from policies.batch import Row, pack
from policies.decode import Decoder, Sampling
from policies.decode import Sequence as Decoded
from policies.frozen import Frozen
from policies.load import context_length
from policies.policy import Policy
from policies.save import parameter_count, weights_bytes
from runtime.tasks.prompt import Prompt, Task

SPEED_ROWS = 32
"""The number of sequences that are decoded together."""
SPEED_TOKENS = (16, 128)
"""The least and most new tokens of each sequence, when speed is measured."""
ROUND_S = 0.5
"""The least seconds for which every contestant decodes in a round, again and again if need be."""
MICRO_BATCH_TOKENS = 8192
Progress = Callable[[str], None]


class Measured(Struct, kw_only=True):
    """Holds what was measured of one contestant. Lists have an item for each prompt."""

    tokenizer: str
    """The tokenizer's fingerprint."""
    parameters: int
    weights_bytes: int
    peak_bytes: int
    """The most memory that decoding took, weights included."""
    passed: list[bool | None]
    """Whether each answer passed; None where the answer was not judged, or the prompt was too long."""
    nats: list[float | None]
    """The nats of the right answer with its end; None where there is none, or it is too long."""
    answer_tokens: list[int]
    """The tokens of the right answer with its end."""
    tokens_per_s: list[float]
    """The tokens per second of each round."""


class Load(Struct, frozen=True):
    """Says what is decoded when speed and memory are measured."""

    rows: int
    new_tokens: int


def measure(
    contestants: Sequence[Contestant],
    task: Task,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    slots: int,
    rounds: int,
    progress: Progress,
) -> tuple[dict[str, Measured], Load]:
    """Returns the measurements of all contestants with a checkpoint, by name, and the load that speed
    and memory were measured with.
    """
    here = [contestant for contestant in contestants if contestant.model is not None]
    low, high = SPEED_TOKENS
    contexts = [context_length(Path(c.model.path)) for c in here if c.model]
    load = Load(SPEED_ROWS, min(max(max_new_tokens, low), high, *(c // 2 for c in contexts)))
    found: dict[str, Measured] = {}
    for contestant in here:
        progress(f"measuring {contestant.name}")
        before = _cleared()
        policy = contestant.load()
        mx.reset_peak_memory()
        seconds(policy, prompts, load)
        peak = mx.get_peak_memory() - before
        nats, lengths = surprise(policy, prompts)
        found[contestant.name] = Measured(
            tokenizer=policy.tokenizer.fingerprint,
            parameters=parameter_count(policy),
            weights_bytes=weights_bytes(policy),
            peak_bytes=peak,
            passed=passes(policy, task, prompts, max_new_tokens, slots),
            nats=nats,
            answer_tokens=lengths,
            tokens_per_s=[],
        )
        del policy
    for number in range(rounds):
        progress(f"measuring speed, round {number + 1} of {rounds}")
        first = number % len(here) if here else 0
        for contestant in [*here[first:], *here[:first]]:
            _cleared()
            policy = contestant.load()
            seconds(
                policy, prompts, Load(load.rows, 2)
            )  # a warm-up: work that is done once is done here
            times, took = 0, 0.0
            while took < ROUND_S:
                times, took = times + 1, took + seconds(policy, prompts, load)
            found[contestant.name].tokens_per_s.append(times * load.rows * load.new_tokens / took)
            del policy
    _cleared()
    return found, load


def passes(
    policy: Policy, task: Task, prompts: Sequence[Prompt], max_new_tokens: int, slots: int
) -> list[bool | None]:
    """Returns whether each prompt's greedy answer is right; None if it cannot be judged, or does not
    fit.
    """
    limit = policy.context_length - max_new_tokens
    asked = {
        i: Decoded(prompt=tuple(ids), key=0)
        for i, prompt in enumerate(prompts)
        if 0 < len(ids := policy.tokenizer.prompt(prompt.messages)) <= limit
    }
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    Decoder(policy, slots).run(list(asked.values()), sampling)
    return [
        task.verify(prompt, policy.tokenizer.decode(asked[i].tokens)).passed if i in asked else None
        for i, prompt in enumerate(prompts)
    ]


def surprise(policy: Policy, prompts: Sequence[Prompt]) -> tuple[list[float | None], list[int]]:
    """Returns −log p of each prompt's right answer and its end, in nats, and how many tokens that is.

    An entry is None, with no tokens, where there is no answer or it is beyond the context.
    """
    tokens = policy.tokenizer
    rows: dict[int, Row] = {}
    for i, prompt in enumerate(prompts):
        if prompt.demonstration is None or prompt.desirable is False:
            continue
        before = tokens.prompt(prompt.messages)
        ids = [*before, *tokens.encode(prompt.demonstration), tokens.stop_token()]
        if before and len(ids) <= policy.context_length:
            rows[i] = Row(np.array(ids), np.arange(len(before), len(ids)), {})
    frozen, places = Frozen(policy), list(rows)
    nats: list[float | None] = [None] * len(prompts)
    for micro in pack(list(rows.values()), MICRO_BATCH_TOKENS):
        logprobs_BR = frozen.logprobs(micro, 1.0).reshape(micro.targets_BR.shape)
        sums_B = mx.where(micro.sampled_BR > 0, logprobs_BR, 0.0).sum(axis=1)
        for row, total in zip(micro.rows, np.array(sums_B).tolist()):
            nats[places[row]] = -total if math.isfinite(total) else None
    lengths = [len(rows[i].positions) if i in rows else 0 for i in range(len(prompts))]
    return nats, lengths


def seconds(policy: Policy, prompts: Sequence[Prompt], load: Load) -> float:
    """Returns the seconds in which so many new tokens of so many rows are decoded, prompts included,
    greedily and without an end.
    """
    room = policy.context_length - load.new_tokens
    sequences = []
    for i in range(load.rows):
        ids = policy.tokenizer.prompt(prompts[i % len(prompts)].messages)
        sequences.append(Decoded(prompt=tuple(ids[-room:]), key=i))
    decoder = Decoder(policy, load.rows, stop_tokens=frozenset())
    began = time.perf_counter()
    decoder.run(sequences, Sampling(temperature=0.0, max_new_tokens=load.new_tokens))
    return time.perf_counter() - began


def rate(measured: Measured) -> float:
    """Returns tokens per second: the median of the rounds."""
    return statistics.median(measured.tokens_per_s)


def _cleared() -> Any:
    """Frees unused memory. Returns the bytes that are still held."""
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()
