"""The decoder against mlx-lm's BatchGenerator on a GRPO-shaped load, in one process on one BLAS.

``python -m ops.bench.decoder [--json FILE] [--rounds N]``: 4 prompts × 16 samples, all decoded at
once, temperature 1, the log-probability of each sampled token kept by both.

What makes the comparison even: in every round each of the 64 sequences has the same length on both
sides. Ours ends at stop tokens (a fixed random 2 % of the vocabulary, of which the random model makes
ragged lengths up to 96); an untimed pass finds the lengths, which BatchGenerator then gets as its
`max_tokens`, so that it has no stop token to look for. It gets its best settings: all rows in one
completion batch, all prompts in one prefill batch, one sampler for all rows, and the cheapest way we
found to pick a log-probability from its [V] rows (through numpy's view of them). "shared" also gives
it each prompt's cache, computed once and copied, as a careful user would; "item" picks the
log-probability as one would write it down, ``response.logprobs[token].item()``. Rounds are
interleaved, in rotating order; a ratio is the median of the rounds', to the peer named or to the
one that is fastest by its median.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.terminal import say
from runtime.blas import load_blas
from runtime.keys import Stream, derive

PROMPT_TOKENS = (16, 24, 32, 40)
SAMPLES = 16
MAX_NEW_TOKENS = 96
STOP_SHARE = 0.02
SHAPES: dict[str, dict[str, int]] = {
    "d128 L4 V512": {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 512},
    "d256 L6 V8192": {"hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 8192},
}
LENGTH_SLACK = 0.02
"""The allowed relative difference of lengths: by rounding, the timed pass may draw other tokens than the
untimed one.
"""
SMALLEST_RATIO = 1.0
"""The least ratio of our tokens per second to the better of BatchGenerator's three."""

Contender = Callable[[int, list[int]], list[int]]
"""A function that decodes round `n` with at most the given number of tokens each, and returns each one's
length.
"""


def measure(shape: dict[str, int], rounds: int) -> dict[str, Any]:
    """Returns tokens per second of each contender in each round, their medians, and our ratios.

    They are measured by the clock, and by processor time, which is steadier on a machine that others
    use too.
    """
    contenders = make_contenders(shape)
    names = list(contenders)
    speeds: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in names} for kind in ("clock", "processor")
    }
    for n in range(-1, rounds):  # round -1 warms up
        lengths = contenders["pippin"](n, [])
        for name in names[n % len(names) :] + names[: n % len(names)]:
            clock, processor = time.perf_counter(), time.process_time()
            did = sum(contenders[name](n, lengths))
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            if abs(did - sum(lengths)) > LENGTH_SLACK * sum(lengths):
                raise AssertionError(f"{name} decoded {did} tokens, not {sum(lengths)}")
            if n >= 0:
                speeds["clock"][name].append(did / clock)
                speeds["processor"][name].append(did / processor)
    medians = {
        kind: {name: statistics.median(each) for name, each in by_name.items()}
        for kind, by_name in speeds.items()
    }
    best = {kind: max(names[1:], key=by_name.__getitem__) for kind, by_name in medians.items()}
    return {
        "shape": shape,
        "tokens_per_second": speeds["clock"],
        "tokens_per_processor_second": speeds["processor"],
        "median": medians["clock"],
        "ratio_to_plain": ratio(speeds["clock"], "mlx-lm"),
        "ratio_to_best": ratio(speeds["clock"], best["clock"]),
        "ratio_to_best_by_processor_time": ratio(speeds["processor"], best["processor"]),
    }


def ratio(speeds: dict[str, list[float]], peer: str) -> float:
    """Returns the median over the rounds of ours to a peer's."""
    return statistics.median(a / b for a, b in zip(speeds["pippin"], speeds[peer]))


def make_contenders(shape: dict[str, int]) -> dict[str, Contender]:
    """Returns both decoders, and the variants of mlx-lm's, on the same network and prompts."""
    policy, prompts = _policy_and_prompts(shape)
    return {"pippin": _ours(policy, prompts), **_theirs(policy, prompts)}


def _policy_and_prompts(shape: dict[str, int]):
    """Returns a random policy with its share of stop tokens, and the token ids of each prompt."""
    from configs.model import Model
    from policies.characters import write_tokenizer
    from policies.load import load_policy
    from policies.random_checkpoint import create_checkpoint

    with tempfile.TemporaryDirectory() as name:
        create_checkpoint(Path(name), config(shape), seed=0)
        write_tokenizer(Path(name))
        policy = load_policy(Model(path=name), Path(name), seed=0)
    vocabulary = shape["vocab_size"]
    stream = Stream("bench", "decoder", vocabulary)
    drawn = stream.shuffled(range(vocabulary))
    policy.tokenizer.stop_tokens = frozenset(drawn[: round(STOP_SHARE * vocabulary)])
    prompts = [[stream.integer(0, vocabulary - 1) for _ in range(n)] for n in PROMPT_TOKENS]
    return policy, prompts


def _ours(policy, prompts: list[list[int]]) -> Contender:
    """Returns Pippin's decoder, which ends at stop tokens and so makes the lengths of a round."""
    from policies.decode import Decoder, Sampling, Sequence

    decoder = Decoder(policy, slots=len(prompts) * SAMPLES)

    def ours(n: int, lengths: list[int]) -> list[int]:
        sequences = [
            Sequence(prompt=tuple(prompt), key=derive(n, i, sample))
            for i, prompt in enumerate(prompts)
            for sample in range(SAMPLES)
        ]
        decoder.run(sequences, Sampling(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS))
        return [len(sequence.logprobs) for sequence in sequences]

    return ours


def _theirs(policy, prompts: list[list[int]]) -> dict[str, Contender]:
    """Returns mlx-lm's BatchGenerator: as it is, with shared prompt caches, and read by `.item()`."""
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.sample_utils import make_sampler

    BatchGenerator.__init__.__globals__["maybe_set_recommended_wired_limit"] = lambda: None
    sampler = make_sampler(temp=1.0)
    each = [prompt for prompt in prompts for _ in range(SAMPLES)]

    def drain(pick: Callable[[Any, int], float], rows: list[list[int]], **how: Any) -> list[int]:
        generator = BatchGenerator(
            policy.model,
            sampler=sampler,
            completion_batch_size=len(each),
            prefill_batch_size=len(each),
        )
        generator.insert(rows, **how)
        logprobs: list[list[float]] = [[] for _ in each]
        tokens: list[list[int]] = [[] for _ in each]
        while responses := generator.next_generated():
            for response in responses:
                tokens[response.uid].append(response.token)
                logprobs[response.uid].append(pick(response.logprobs, response.token))
        generator.close()
        return [len(found) for found in logprobs]

    def shared(n: int, lengths: list[int]) -> list[int]:
        caches, lasts = [], []
        for prompt in prompts:
            cache = make_prompt_cache(policy.model)
            policy.model(mx.array(prompt[:-1])[None], cache=cache)
            mx.eval([c.state for c in cache])
            caches += [copy.deepcopy(cache) for _ in range(SAMPLES)]
            lasts += [prompt[-1:]] * SAMPLES
        return drain(_through_numpy, lasts, max_tokens=lengths, caches=caches)

    return {
        "mlx-lm": lambda n, lengths: drain(_through_numpy, each, max_tokens=lengths),
        "shared": shared,
        "item": lambda n, lengths: drain(_through_item, each, max_tokens=lengths),
    }


def _through_numpy(row: Any, token: int) -> float:
    """Returns the token's log-probability out of numpy's view of the row."""
    return float(np.array(row, copy=False)[token])


def _through_item(row: Any, token: int) -> float:
    """Returns the token's log-probability as one would write it down."""
    return float(row[token].item())


def config(shape: dict[str, int]) -> dict[str, Any]:
    """Returns the config.json of the Qwen3 architecture in this shape."""
    width = shape["hidden_size"]
    return {
        "model_type": "qwen3",
        "intermediate_size": 3 * width,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        **shape,
    }


def main() -> int:
    """Prints the table. Returns 1 if the decoder is not ahead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    blas = load_blas(exact=False)
    with alone_on_the_gpu("decoder"):
        results = {name: measure(shape, options.rounds) for name, shape in SHAPES.items()}
    if options.json:
        write_json(options.json, {"blas": blas, "rounds": options.rounds, "shapes": results})
    say(f"{len(PROMPT_TOKENS)} prompts × {SAMPLES} samples, to {MAX_NEW_TOKENS} tokens; {blas}")
    say(f"median tokens per second of {options.rounds} interleaved rounds")
    print_table(
        ["shape", *next(iter(results.values()))["median"], "to plain", "to best", "by CPU time"],
        [
            [
                name,
                *(f"{speed:,.0f}" for speed in result["median"].values()),
                f"{result['ratio_to_plain']:.2f}",
                f"{result['ratio_to_best']:.2f}",
                f"{result['ratio_to_best_by_processor_time']:.2f}",
            ]
            for name, result in results.items()
        ],
    )
    return int(any(result["ratio_to_best"] < SMALLEST_RATIO for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
