"""In exact mode a member's answers do not depend on the rest of the batch, bit for bit.

``python -m tests.policies.evolution.exact_population SHARE``, which test_population.py runs. SHARE is
"some", for one rank of each family and one quantisation, or "all".
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from runtime.blas import load_blas

assert load_blas(exact=True) in ("reference", "metal")

from configs.model import Lora  # noqa: E402
from policies.decode import Decoder, Sampling, Sequence  # noqa: E402
from policies.evolution.perturbation import Perturbation  # noqa: E402
from policies.evolution.population import Population  # noqa: E402
from policies.policy import Policy  # noqa: E402
from tests.policies.checkpoints import FAMILIES, write  # noqa: E402
from tests.policies.evolution.populations import (  # noqa: E402
    asked,
    everyone,
    load,
    questions,
)

SAMPLING = Sampling(temperature=0.9, max_new_tokens=24)


def main(everything: bool) -> None:
    for number, family in enumerate(FAMILIES):
        with tempfile.TemporaryDirectory() as name:
            policy = load(write(Path(name), family), family)
            for rank in (1, 3) if everything else ((1, 3)[number % 2],):
                check(policy, asked(policy, rank))
        print(family)
    for bits in (0, 4, 8) if everything else (4,):
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), "qwen3")
            policy = load(Path(name), train=Lora(rank=4), quantize_bits=bits, shift=0.02)
            check(policy, asked(policy, rank=2, noise="uniform"))
    print("adapters")
    print("equal")


def check(policy: Policy, which: Perturbation) -> None:
    together = decode(policy, which, questions(8, 6), slots=64)
    assert len({len(s.tokens) for s in together}) > 8
    same(decode(policy, which, questions(8, 6), slots=7), together)
    same(decode(policy, which, questions(8, 6), slots=64, tokens_between=7), together)
    backwards = decode(policy, which, questions(8, 6)[::-1], slots=30)
    same(backwards[::-1], together)
    for i in (0, 17, 42, 47):
        same(decode(policy, which, [questions(8, 6)[i]], slots=1), [together[i]])
    for member in (0, 5):  # with the same factors as its twin, and without it
        mine = [s for s in questions(8, 6) if s.member == member]
        theirs = [s for s in together if s.member == member]
        same(decode(policy, which, mine, slots=6), theirs)


def decode(
    policy: Policy,
    which: Perturbation,
    group: list[Sequence],
    slots: int,
    tokens_between: int | None = None,
) -> list[Sequence]:
    with Population(policy, which, everyone()) as population:
        decoder = Decoder(policy, slots, population.rows)
        while not all(sequence.finished for sequence in group):
            left = iter([0] * (tokens_between or 1000))
            decoder.run(group, SAMPLING, 0, partial(next, left, None))
    return group


def same(ours: list[Sequence], theirs: list[Sequence]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.logprobs, a.stop_reason) == (b.tokens, b.logprobs, b.stop_reason)


if __name__ == "__main__":
    main(sys.argv[1] == "all")
