"""A population in one batch against plain decoding and against members one after another, in one process.

``python -m ops.bench.population [--json FILE] [--rounds N]``: 32 antithetic members × 8 prompts of 16
tokens × 32 new tokens, all 256 rows at once, rank-1 noise on every matrix; no stop tokens, so that every
contender samples equally many.

"plain" decodes the same 256 rows without noise, and prefills each of the 8 prompts once, which members
cannot: theirs differ from the first layer on. "apart" is plain decoding that prefills 256 prompts too:
population ÷ apart is what the noise itself costs. "sequential" perturbs the weights and decodes a
member's 8 prompts in one batch, member after member; "single" does so answer after answer. plain ÷
sequential is the most that any population decode could gain: what a wider batch gains here. Sequential
ones run on a few members of each round, and all are compared by tokens per second. Rounds are
interleaved in rotating order; a ratio is the median of the rounds'. Memory is MLX's peak, once a
contender, the weights included; "population ×4" puts 128 members through the same 256 slots.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops.bench.decoder import config
from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.terminal import say
from runtime.blas import load_blas
from runtime.keys import Stream, derive

SHAPE = {"hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 8192}
MEMBERS, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 8, 16, 32
SEQUENTIAL_MEMBERS, SINGLE_MEMBERS = 4, 1
"""The members of a round that are decoded one after another: all of them would take too long."""
TEMPERATURES = (0.0, 1.0)
SMALLEST_TO_PLAIN, SMALLEST_TO_SEQUENTIAL, LARGEST_MEMORY = 0.6, 5.0, 1.25

Contender = Callable[[int, float], int]
"""A function that decodes round `n` at a temperature, and returns how many tokens it sampled."""


def measure(contenders: dict[str, Contender], temperature: float, rounds: int) -> dict[str, Any]:
    """Returns tokens per second of each contender in each round, by the clock and by processor time."""
    names = list(contenders)
    speeds = {kind: {name: [] for name in names} for kind in ("clock", "processor")}
    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            clock, processor = time.perf_counter(), time.process_time()
            tokens = contenders[name](n, temperature)
            speeds["clock"][name].append(tokens / (time.perf_counter() - clock))
            speeds["processor"][name].append(tokens / (time.process_time() - processor))
    return {
        "temperature": temperature,
        "tokens_per_second": speeds["clock"],
        "median": {name: statistics.median(each) for name, each in speeds["clock"].items()},
        "ratio": {
            kind: {
                "population to plain": ratio(each["population"], each["plain"]),
                "population to apart": ratio(each["population"], each["apart"]),
                "population to sequential": ratio(each["population"], each["sequential"]),
                "plain to sequential": ratio(each["plain"], each["sequential"]),
                "population to single": ratio(each["population"], each["single"]),
            }
            for kind, each in speeds.items()
        },
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Returns the median over the rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


def make_contenders() -> tuple[dict[str, Contender], Contender]:
    """Returns the contenders, and the one of which only memory is measured."""
    from policies.decode import RowsOf, Sequence
    from policies.evolution.centre import Centre
    from policies.evolution.perturbation import members, perturbation
    from policies.evolution.population import Population

    policy, prompts = _policy_and_prompts()
    how = _generation()
    which = perturbation(how, policy)
    centre = Centre(policy, which, how.update, how.anchor)
    slots = MEMBERS * PROMPTS

    def rows(n: int, members: range, *, one_model: bool = False) -> list[Sequence]:
        return [
            Sequence(prompt=prompt, key=derive(n, m, i), member=0 if one_model else m)
            for m in members
            for i, prompt in enumerate(prompts)
        ]

    def decode(
        group: list[Sequence], slots: int, temperature: float, of: RowsOf | None = None
    ) -> int:
        return _decode(policy, group, slots, temperature, of)

    def plain(n: int, temperature: float) -> int:
        return decode(rows(n, range(MEMBERS), one_model=True), slots, temperature)

    def apart(n: int, temperature: float) -> int:
        return decode(rows(n, range(MEMBERS)), slots, temperature, lambda members_N: None)

    def population(n: int, temperature: float, size: int = MEMBERS) -> int:
        everyone = members(0, n, size, antithetic=True)
        with Population(policy, which, everyone) as inside:
            return decode(rows(n, range(size)), slots, temperature, inside.rows)

    def one_by_one(n: int, temperature: float, count: int, slots: int) -> int:
        everyone, tokens = members(0, n, MEMBERS, antithetic=True), 0
        for m in range(count):
            with centre.member_in(policy, everyone[m]):
                tokens += decode(rows(n, range(m, m + 1)), slots, temperature)
        return tokens

    return {
        "plain": plain,
        "apart": apart,
        "population": population,
        "sequential": lambda n, t: one_by_one(n, t, SEQUENTIAL_MEMBERS, PROMPTS),
        "single": lambda n, t: one_by_one(n, t, SINGLE_MEMBERS, 1),
    }, lambda n, t: population(n, t, 4 * MEMBERS)


def _policy_and_prompts():
    """Returns a random policy without stop tokens, and the token ids of each prompt."""
    from configs.model import Model
    from policies.characters import write_tokenizer
    from policies.load import load_policy
    from policies.random_checkpoint import create_checkpoint

    with tempfile.TemporaryDirectory() as name:
        create_checkpoint(Path(name), config(SHAPE), seed=0)
        write_tokenizer(Path(name))
        policy = load_policy(Model(path=name), Path(name), seed=0)
    policy.tokenizer.stop_tokens = frozenset()
    stream = Stream("bench", "population")
    prompts = [
        tuple(stream.integer(0, SHAPE["vocab_size"] - 1) for _ in range(PROMPT_TOKENS))
        for _ in range(PROMPTS)
    ]
    return policy, prompts


def _generation():
    """Returns the settings of the noise: rank 1, on every matrix, members in antithetic pairs."""
    from configs.perturbations import Free, Generation, LowRank, PlainStep

    return Generation(
        population=MEMBERS,
        sigma=1e-3,
        antithetic=True,
        perturbation=LowRank(),
        noise="rademacher",
        layers=-1,
        modules=[],
        shaping="z_score",
        update=PlainStep(),
        anchor=Free(),
    )


def _decode(policy, group, slots: int, temperature: float, of) -> int:
    """Returns how many tokens a new decoder sampled for the group."""
    from policies.decode import Decoder, Sampling

    decoder = Decoder(policy, slots, of)
    decoder.run(group, Sampling(temperature=temperature, max_new_tokens=NEW_TOKENS))
    return decoder.counts.sampled_tokens


def peaks(contenders: dict[str, Contender]) -> dict[str, int]:
    """Returns peak bytes of each. The first call warms up nothing that memory depends on."""
    import mlx.core as mx

    found = {}
    for name, contender in contenders.items():
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        contender(0, 0.0)
        found[name] = mx.get_peak_memory()
    return found


def main() -> int:
    """Prints the tables. Returns 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    blas = load_blas(exact=False)
    with alone_on_the_gpu("population"):
        contenders, larger = make_contenders()
        memory = peaks({**contenders, "population ×4": larger})
        results = [measure(contenders, t, options.rounds) for t in TEMPERATURES]
    shares = {name: peak / memory["plain"] for name, peak in memory.items()}
    if options.json:
        result = {"blas": blas, "shape": SHAPE, "memory_bytes": memory, "speed": results}
        write_json(options.json, result)
    say(f"{MEMBERS} members × {PROMPTS} prompts × {NEW_TOKENS} tokens; {blas}")
    say(f"median tokens per second of {options.rounds} interleaved rounds")
    print_table(
        ["temperature", *contenders],
        [[f"{r['temperature']:g}", *(f"{s:,.0f}" for s in r["median"].values())] for r in results],
    )
    say("ratios, by the clock and by processor time")
    names = list(results[0]["ratio"]["clock"])
    both = ((r["temperature"], r["ratio"]["clock"], r["ratio"]["processor"]) for r in results)
    print_table(
        ["temperature", *names],
        [[f"{t:g}", *(f"{c[n]:.2f} {p[n]:.2f}" for n in names)] for t, c, p in both],
    )
    say("peak memory")
    print_table(
        ["", "MiB", "to plain"],
        [[n, f"{memory[n] / 2**20:,.0f}", f"{shares[n]:.2f}"] for n in memory],
    )
    to_plain = min(r["ratio"]["clock"]["population to plain"] for r in results)
    to_sequential = min(r["ratio"]["clock"]["population to sequential"] for r in results)
    most_memory = max(shares["population"], shares["population ×4"])
    missed = to_plain < SMALLEST_TO_PLAIN or to_sequential < SMALLEST_TO_SEQUENTIAL
    return int(missed or most_memory > LARGEST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
