"""Exact mode's promises, bit for bit, in a process that has no OpenBLAS: prints "equal" or fails.

``python -m tests.policies.exact_decode``, which test_decode.py runs.
"""

import tempfile
from functools import partial
from pathlib import Path

from runtime.blas import load_blas

assert load_blas(exact=True) in ("reference", "metal")

import mlx.core as mx  # noqa: E402

from configs.model import Full, Lora, Model  # noqa: E402
from kernels.logprobs import selected  # noqa: E402
from policies.decode import Decoder, Sampling, Sequence  # noqa: E402
from policies.load import load_policy  # noqa: E402
from policies.policy import Policy  # noqa: E402
from runtime.keys import Stream, derive  # noqa: E402
from tests.policies.checkpoints import FAMILIES, VOCABULARY, WINDOW, write  # noqa: E402

SAMPLING = Sampling(temperature=0.9, max_new_tokens=24)
STOPS = frozenset(range(0, VOCABULARY, 24))


def main() -> None:
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as name:
            folder = write(Path(name), family)
            for how in (Full(), Lora(rank=2)) if family == "qwen3" else (Full(),):
                policy = load_policy(Model(path=name, train=how), folder, seed=0)
                policy.tokenizer.stop_tokens = STOPS
                if isinstance(how, Lora):  # adapters that do something
                    policy.load_trained({k: w + 0.05 for k, w in policy.trained().items()})
                check(policy)
        print(family)
    print("equal")


def check(policy: Policy) -> None:
    together = decode(policy, slots=64)
    lengths = {len(sequence.tokens) for sequence in together}
    assert len(lengths) > 8 and max(lengths) > 2 * WINDOW, lengths
    learned(policy, together)
    same(decode(policy, slots=5), together)
    same(decode(policy, slots=64, tokens_between=7), together)
    for i in (0, 17, 42, 63):
        alone = fresh()[i]
        Decoder(policy, slots=1).run([alone], SAMPLING)
        same([alone], [together[i]])


def fresh() -> list[Sequence]:
    stream = Stream("exact")
    prompts = [
        tuple(stream.integer(0, VOCABULARY - 1) for _ in range(length))
        for length in (1, 2, 3, 7, 8, 9, 16, 37)
    ]
    return [Sequence(prompt=p, key=derive(i, n)) for i, p in enumerate(prompts) for n in range(8)]


def decode(policy: Policy, slots: int, tokens_between: int | None = None) -> list[Sequence]:
    sequences = fresh()
    decoder = Decoder(policy, slots)
    while not all(sequence.finished for sequence in sequences):
        left = iter([0] * (tokens_between or 1000))
        decoder.run(sequences, SAMPLING, 0, partial(next, left, None))
    return sequences


def same(ours: list[Sequence], theirs: list[Sequence]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.logprobs, a.stop_reason) == (b.tokens, b.logprobs, b.stop_reason)


def learned(policy: Policy, sequences: list[Sequence]) -> None:
    """By the learner's way: right-padded batches, all positions at once, chunks of its own."""
    for first in range(0, len(sequences), 8):
        batch = sequences[first : first + 8]
        rows = [[*s.prompt, *s.tokens] for s in batch]
        longest = max(map(len, rows))
        tokens_BT = mx.array([row + [0] * (longest - len(row)) for row in rows])
        hidden_BTD = policy.hidden(tokens_BT)
        flat_ND = hidden_BTD[:, :-1].reshape(-1, hidden_BTD.shape[-1])
        logprobs_N, _ = selected(
            flat_ND,
            policy.project,
            policy.head_weights(),
            tokens_BT[:, 1:].reshape(-1),
            temperature=SAMPLING.temperature,
            chunk_tokens=50,
        )
        logprobs_BT = logprobs_N.reshape(len(batch), -1).tolist()
        for s, row, known in zip(batch, rows, logprobs_BT):  # type: ignore[arg-type]
            assert known[len(s.prompt) - 1 : len(row) - 1] == s.logprobs


if __name__ == "__main__":
    main()
