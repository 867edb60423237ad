"""The decoder: what is sampled, what is kept, and what it may not depend on.

Exact mode is a property of a process, so what it promises is checked by
`tests/policies/exact_decode.py`, run in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from configs.model import Model
from kernels.logprobs import score
from policies.arrays import number
from policies.decode import Decoder, Sampling, Sequence
from policies.load import load_policy
from policies.policy import Policy
from runtime.keys import Stream, derive
from runtime.trajectory import StopReason
from tests.policies.checkpoints import FAMILIES, VOCABULARY, WINDOW, write

ROOT = Path(__file__).parents[2]
STOPS = frozenset(range(0, VOCABULARY, 12))
"""About one token in twelve ends a sequence: ragged lengths from random weights."""
FAST_TOLERANCE = 1e-4


def load(folder: Path, family: str = "qwen3", **settings) -> Policy:
    if not folder.exists() or not any(folder.iterdir()):
        write(folder, family)
    policy = load_policy(Model(path=str(folder), **settings), folder, seed=0)
    policy.tokenizer.stop_tokens = STOPS
    return policy


def prompts(count: int, longest: int = 20) -> list[tuple[int, ...]]:
    stream = Stream("prompts", count)
    lengths = [stream.integer(1, longest) for _ in range(count)]
    return [tuple(stream.integer(0, VOCABULARY - 1) for _ in range(n)) for n in lengths]


def sequences(groups: list[tuple[int, ...]], samples: int) -> list[Sequence]:
    return [
        Sequence(prompt=prompt, key=derive(i, sample))
        for i, prompt in enumerate(groups)
        for sample in range(samples)
    ]


def rescored(policy: Policy, sequence: Sequence, temperature: float = 1.0) -> np.ndarray:
    """The learner's log-probabilities of what was sampled, by one pass over all of it."""
    ids = [*sequence.prompt, *sequence.tokens]
    hidden = policy.hidden(mx.array([ids]))[0, len(sequence.prompt) - 1 : -1]
    targets = mx.array(sequence.tokens)
    return np.array(score(hidden, policy.project, targets, temperature=temperature))


def likeliest(policy: Policy, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy decoding as plainly as can be: the whole sequence again for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(number(mx.argmax(policy.model(mx.array([ids]))[0, -1]))))
        if ids[-1] in STOPS:
            break
    return ids[len(prompt) :]


def shift(policy: Policy, seed: int) -> dict[str, mx.array]:
    """Clearly other weights."""
    return {
        name: w + 0.2 * mx.random.normal(w.shape, key=mx.random.key(derive(seed, name) % 2**31))
        for name, w in policy.trained().items()
    }


# ── what is sampled ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [64, 5])
def test_log_probabilities_are_the_learners(tmp_path, family, slots):
    policy = load(tmp_path, family)
    group = sequences(prompts(6), samples=4)
    Decoder(policy, slots).run(group, Sampling(temperature=0.8, max_new_tokens=24))
    assert max(len(s.prompt) + len(s.tokens) for s in group) > 2 * WINDOW
    for sequence in group:
        gap = np.abs(rescored(policy, sequence, 0.8) - sequence.logprobs).max()
        assert gap < FAST_TOLERANCE


@pytest.mark.skipif(sys.platform != "linux", reason="a promise of the stock CPU wheel")
def test_in_exact_mode_nothing_depends_on_the_company_or_on_interruptions():
    command = [sys.executable, "-m", "tests.policies.exact_decode"]
    environment = {**os.environ, "PIPPIN_EXACT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == [*FAMILIES, "equal"], done.stdout + done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_argmax_of_the_plain_model(tmp_path, family):
    policy = load(tmp_path, family)
    group = sequences(prompts(5), samples=1)
    Decoder(policy, slots=3).run(group, Sampling(temperature=0, max_new_tokens=16))
    for sequence in group:
        assert sequence.tokens == likeliest(policy, sequence.prompt, 16)
        assert sequence.logprobs == [0.0] * len(sequence.tokens)


def test_the_first_token_is_distributed_as_the_softmax(tmp_path):
    policy, count = load(tmp_path), 4_000
    prompt = (7, 8, 9)
    policy.load_trained({k: 3 * w for k, w in policy.trained().items()})  # less uniform
    group = [Sequence(prompt=prompt, key=derive("first", i)) for i in range(count)]
    Decoder(policy, slots=1_000).run(group, Sampling(temperature=1.5, max_new_tokens=1))
    seen = np.bincount([s.tokens[0] for s in group], minlength=VOCABULARY)
    logits = policy.model(mx.array([prompt]))[0, -1] / 1.5
    expected = count * np.array(mx.softmax(logits))
    common = expected >= 5
    parts = [(seen[common], expected[common]), (seen[~common].sum(), expected[~common].sum())]
    chi_square = sum(float(((s - e) ** 2 / e).sum()) for s, e in parts)
    freedom = int(common.sum())
    assert freedom > 20
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # keyed: never flaky


def test_samples_of_one_prompt_differ_and_one_key_repeats(tmp_path):
    policy = load(tmp_path)
    one, again = (sequences(prompts(1), samples=8) for _ in range(2))
    for group in (one, again):
        Decoder(policy, slots=8).run(group, Sampling(max_new_tokens=24))
    assert [s.tokens for s in one] == [s.tokens for s in again]
    assert len({tuple(s.tokens) for s in one}) == 8


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}], ids=str)
def test_truncated_sampling_keeps_to_the_kept_set(tmp_path, options):
    policy = load(tmp_path)
    group = sequences(prompts(2), samples=3)
    Decoder(policy, slots=6).run(group, Sampling(max_new_tokens=6, **options))
    for sequence in group:
        whole = rescored(policy, sequence)
        assert (np.array(sequence.logprobs) >= whole - 1e-5).all()
        assert (np.array(sequence.logprobs) > whole + 1e-3).any()


def test_prompts_of_very_different_lengths_do_not_disturb_each_other(tmp_path):
    policy = load(tmp_path)
    short, long = (5,), tuple(range(100))
    group = sequences([short, long, short + long[:30]], samples=2)
    Decoder(policy, slots=4).run(group, Sampling(max_new_tokens=20))
    for sequence in group:
        assert np.abs(rescored(policy, sequence) - sequence.logprobs).max() < FAST_TOLERANCE


def test_blocks_that_are_recomputed_in_training_decode_as_well(tmp_path, monkeypatch):
    from mlx_lm.models.llama import TransformerBlock

    monkeypatch.setattr(TransformerBlock, "__call__", TransformerBlock.__call__)
    plain, spare = (sequences(prompts(3), samples=2) for _ in range(2))
    Decoder(load(tmp_path, "llama"), slots=4).run(plain, Sampling(max_new_tokens=12))
    recomputing = load(tmp_path, gradient_checkpointing=True)
    Decoder(recomputing, slots=4).run(spare, Sampling(max_new_tokens=12))
    assert [s.tokens for s in spare] == [s.tokens for s in plain]


# ── how it ends ──────────────────────────────────────────────────────────────────────────────────


def test_the_stop_token_is_kept_with_its_log_probability(tmp_path):
    policy = load(tmp_path)
    group = sequences(prompts(4), samples=16)
    Decoder(policy, slots=16).run(group, Sampling(max_new_tokens=20))
    reasons = {s.stop_reason for s in group}
    assert reasons == {StopReason.STOP, StopReason.LENGTH}
    for s in group:
        assert len(s.tokens) == len(s.logprobs) == len(s.versions) <= 20
        assert not STOPS & set(s.tokens[:-1])
        assert (s.tokens[-1] in STOPS) is (s.stop_reason is StopReason.STOP)
        assert s.finished and s.seconds > 0
        if s.stop_reason is StopReason.LENGTH:
            assert len(s.tokens) == 20


@pytest.mark.parametrize("slots", [64, 3])
def test_a_single_new_token_is_enough(tmp_path, slots):
    group = sequences(prompts(5), samples=2)
    Decoder(load(tmp_path), slots).run(group, Sampling(max_new_tokens=1))
    assert [len(s.tokens) for s in group] == [1] * 10


def test_a_stop_token_at_the_limit_is_a_stop(tmp_path):
    policy = load(tmp_path)
    policy.tokenizer.stop_tokens = frozenset(range(VOCABULARY))
    group = sequences(prompts(1), samples=1)
    Decoder(policy, slots=1).run(group, Sampling(max_new_tokens=1))
    assert group[0].stop_reason is StopReason.STOP


# ── groups and slots ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("slots", [64, 16, 5, 1])
def test_a_groups_prompt_is_prefilled_once(tmp_path, slots):
    group = sequences(prompts(3), samples=9)
    decoder = Decoder(load(tmp_path), slots)
    decoder.run(group, Sampling(max_new_tokens=10))
    assert decoder.counts.prefilled_tokens == sum(map(len, prompts(3)))
    assert decoder.counts.sampled_tokens == sum(len(s.tokens) for s in group)


@pytest.mark.parametrize("slots", [1, 2, 7, 23, 64])
def test_every_sequence_ends_whatever_the_number_of_slots(tmp_path, slots):
    group = sequences(prompts(7), samples=3)
    Decoder(load(tmp_path), slots).run(group, Sampling(max_new_tokens=15))
    assert all(s.finished for s in group)


def test_nothing_to_do_is_done(tmp_path):
    decoder = Decoder(load(tmp_path), slots=2)
    decoder.run([], Sampling())
    group = sequences(prompts(1), samples=1)
    decoder.run(group, Sampling(max_new_tokens=3))
    before = list(group[0].tokens)
    decoder.run(group, Sampling(max_new_tokens=3))
    assert group[0].tokens == before


# ── between tokens ───────────────────────────────────────────────────────────────────────────────


def test_an_interruption_keeps_what_was_sampled(tmp_path):
    policy = load(tmp_path)
    policy.tokenizer.stop_tokens = frozenset()
    group = sequences(prompts(4), samples=2)
    countdown = iter([0, 0, 0, None])
    Decoder(policy, slots=6).run(group, Sampling(max_new_tokens=30), 0, lambda: next(countdown))
    assert {s.stop_reason for s in group} == {StopReason.INTERRUPTED}
    assert sorted({len(s.tokens) for s in group}) == [0, 4]
    for s in group:
        assert len(s.tokens) == len(s.logprobs) == len(s.versions)
        if s.tokens:
            assert np.abs(rescored(policy, s) - s.logprobs).max() < FAST_TOLERANCE


def test_interrupted_at_once_means_nothing_sampled(tmp_path):
    group = sequences(prompts(2), samples=2)
    decoder = Decoder(load(tmp_path), slots=4)
    decoder.run(group, Sampling(max_new_tokens=5), 0, lambda: None)
    assert [s.tokens for s in group] == [[]] * 4
    assert {s.stop_reason for s in group} == {StopReason.INTERRUPTED}
    decoder.run(group, Sampling(max_new_tokens=5))
    assert all(s.finished for s in group)


@pytest.mark.parametrize("slots", [12, 5])
def test_interruptions_do_not_change_what_is_sampled(tmp_path, slots):
    policy = load(tmp_path, "gemma3_text")
    whole, pieces = (sequences(prompts(4), samples=3) for _ in range(2))
    decoder = Decoder(policy, slots)
    decoder.run(whole, Sampling(max_new_tokens=24))
    rounds = 0
    while not all(s.finished for s in pieces):
        decoder.run(pieces, Sampling(max_new_tokens=24), 0, every(7))
        rounds += 1
    assert rounds > 2
    assert [s.tokens for s in pieces] == [s.tokens for s in whole]
    assert [s.stop_reason for s in pieces] == [s.stop_reason for s in whole]


def every(tokens: int):
    """Between tokens: stop after so many."""
    countdown = iter([0] * tokens)
    return lambda: next(countdown, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_is_stamped_with_the_weights_that_made_it(tmp_path, family):
    policy = load(tmp_path, family)
    policy.tokenizer.stop_tokens = frozenset()
    old, new = policy.trained(), shift(policy, 1)
    asked = 0

    def swap() -> int:
        nonlocal asked
        asked += 1
        if asked == 6:
            policy.load_trained(new)
        return 41 if asked < 6 else 42

    group = sequences(prompts(3), samples=2)
    decoder = Decoder(policy, slots=4)
    decoder.run(group, Sampling(max_new_tokens=12), 41, swap)
    for s in group:
        assert s.versions == sorted(s.versions)
        assert set(s.versions) <= {41, 42}
    assert group[0].versions == [41] * 6 + [42] * 6
    assert group[-1].versions == [42] * 12  # it waited for a slot
    assert decoder.counts.prefilled_tokens == sum(map(len, prompts(3)))

    policy.load_trained(old)
    before = rescored(policy, group[0])
    assert np.abs(before[:6] - group[0].logprobs[:6]).max() < FAST_TOLERANCE
    assert np.abs(before[6:] - group[0].logprobs[6:]).max() > 1e-2
    policy.load_trained(new)
    assert np.abs(rescored(policy, group[-1]) - group[-1].logprobs).max() < FAST_TOLERANCE


def test_a_prompt_prefilled_by_old_weights_is_prefilled_again_for_new_ones(tmp_path):
    policy = load(tmp_path)
    policy.tokenizer.stop_tokens = frozenset()
    new = shift(policy, 1)
    asked = 0

    def swap() -> int:
        nonlocal asked
        asked += 1
        if asked == 3:
            policy.load_trained(new)
        return int(asked >= 3)

    (prompt,) = prompts(1)
    group = sequences([prompt], samples=6)
    decoder = Decoder(policy, slots=2)
    decoder.run(group, Sampling(max_new_tokens=8), 0, swap)
    assert decoder.counts.prefilled_tokens == 2 * len(prompt)
    for s in group[2:]:
        assert s.versions == [1] * 8
        assert np.abs(rescored(policy, s) - s.logprobs).max() < FAST_TOLERANCE


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ((), "at least one prompt token"),
        ((VOCABULARY,), f"token {VOCABULARY} is outside the vocabulary"),
        ((3, -1), "token -1 is outside the vocabulary"),
        ((1,) * 250, "exceed the model's context of 256"),
    ],
    ids=["empty", "too large", "negative", "too long"],
)
def test_what_cannot_be_decoded_is_refused_before_anything_runs(tmp_path, prompt, words):
    good = Sequence(prompt=(1, 2), key=1)
    decoder = Decoder(load(tmp_path), slots=4)
    with pytest.raises(ValueError, match=words):
        decoder.run([good, Sequence(prompt=prompt, key=2)], Sampling(max_new_tokens=10))
    assert good.tokens == [] and decoder.counts.prefilled_tokens == 0


def test_the_context_may_be_filled_to_its_end(tmp_path):
    policy = load(tmp_path)
    policy.tokenizer.stop_tokens = frozenset()
    group = [Sequence(prompt=(1,) * 246, key=1)]
    Decoder(policy, slots=1).run(group, Sampling(max_new_tokens=10))
    assert np.abs(rescored(policy, group[0]) - group[0].logprobs).max() < FAST_TOLERANCE
