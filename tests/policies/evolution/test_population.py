"""Population decode against models whose weights are explicitly perturbed, one after another."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from configs.algorithms.evolution import Es
from configs.model import Lora, Model
from configs.perturbations import FullRank
from configs.schema import Settings
from configs.tasks import Sorting
from policies.arrays import flat
from policies.decode import Decoder, Sampling, Sequence
from policies.evolution.centre import Centre
from policies.evolution.likelihood import log_likelihoods
from policies.evolution.loader import EvolutionWeightLoader
from policies.evolution.perturbation import Member, Perturbation
from policies.evolution.population import Population
from policies.weights import digest
from runtime.errors import BadInput
from runtime.trajectory import StopReason
from tests.policies.checkpoints import FAMILIES, VOCABULARY
from tests.policies.evolution.populations import (
    SIGMA,
    asked,
    centre,
    decode,
    everyone,
    explicit_logprobs,
    load,
    prompts,
    questions,
)

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-4
SAMPLING = Sampling(temperature=0.9, max_new_tokens=20)


def agree(policy, which: Perturbation, group: list[Sequence], temperature: float) -> None:
    """Every log-probability is the explicitly perturbed model's, and clearly not the centre's."""
    middle, gaps = centre(policy, which), []
    for index, member in enumerate(everyone()):
        mine = [s for s in group if s.member == index]
        gaps += [np.abs(explicit_logprobs(policy, s, temperature) - s.logprobs).max() for s in mine]
        with middle.member_in(policy, member):
            for sequence in mine:
                theirs = explicit_logprobs(policy, sequence, temperature)
                assert np.abs(theirs - sequence.logprobs).max() < TOLERANCE
    assert min(gaps) > 20 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("slots", "rank"), [(64, 1), (5, 1), (64, 3)])
def test_log_probabilities_are_those_of_the_perturbed_weights(tmp_path, family, slots, rank):
    policy = load(tmp_path, family)
    which = asked(policy, rank)
    group = decode(policy, which, questions(8, 4), slots, SAMPLING)
    assert all(s.finished for s in group)
    agree(policy, which, group, SAMPLING.temperature)


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("noise", ["rademacher", "normal"])
def test_adapters_are_perturbed_over_a_quantised_base(tmp_path, bits, noise):
    policy = load(tmp_path, train=Lora(rank=4), quantize_bits=bits, shift=0.02)
    which = asked(policy, rank=2, noise=noise)
    assert all("lora_" in name for name in which.shapes)
    agree(policy, which, decode(policy, which, questions(8, 3), 7, SAMPLING), SAMPLING.temperature)


def test_greedy_answers_are_those_of_the_perturbed_weights(tmp_path):
    policy, greedy = load(tmp_path), Sampling(temperature=0, max_new_tokens=16)
    which = asked(policy)
    group = decode(policy, which, questions(8, 4), 9, greedy)
    middle = centre(policy, which)
    for index, member in enumerate(everyone()):
        alone = [s for s in questions(8, 4) if s.member == index]
        with middle.member_in(policy, member):
            Decoder(policy, 4).run(alone, greedy)
        assert [s.tokens for s in alone] == [s.tokens for s in group if s.member == index]
    assert len({tuple(s.tokens) for s in group}) > 4  # members differ


def test_chosen_layers_and_modules_alone_are_perturbed(tmp_path):
    policy = load(tmp_path, "llama")
    which = asked(policy, layers=1, modules=["self_attn.v_proj", "mlp.down_proj"], sigma=0.1)
    assert list(which.shapes) == [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.self_attn.v_proj.weight",
    ]
    agree(policy, which, decode(policy, which, questions(8, 3), 64, SAMPLING), SAMPLING.temperature)


def test_half_precision_weights_stay_half_precision(tmp_path):
    policy = load(tmp_path, dtype="bfloat16")
    which = asked(policy)
    group = decode(policy, which, questions(8, 2), 8, SAMPLING)
    middle = centre(policy, which)
    with middle.member_in(policy, everyone()[0]):
        theirs = explicit_logprobs(policy, group[0], SAMPLING.temperature)
    assert np.abs(theirs - group[0].logprobs).max() < 0.1
    assert {w.dtype for w in policy.trained().values()} == {mx.bfloat16}


@pytest.mark.skipif(sys.platform != "linux", reason="a promise of the stock CPU wheel")
@pytest.mark.parametrize("share", ["some", pytest.param("all", marks=pytest.mark.soak)])
def test_in_exact_mode_a_members_answers_do_not_depend_on_the_rest_of_the_batch(share):
    command = [sys.executable, "-m", "tests.policies.evolution.exact_population", share]
    environment = {**os.environ, "PIPPIN_EXACT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == [*FAMILIES, "adapters", "equal"], done.stdout + done.stderr


# ── what it leaves behind ────────────────────────────────────────────────────────────────────────


def test_evaluating_a_generation_leaves_model_and_master_bit_identical(tmp_path):
    policy = load(tmp_path)
    which = asked(policy, rank=2)
    middle = centre(policy, which)
    model, master = digest(flat(policy.model.parameters())), digest(middle.master)
    decode(policy, which, questions(8, 2), 5, SAMPLING)
    for member in everyone():
        with middle.member_in(policy, member):
            assert digest(flat(policy.model.parameters())) != model
    assert digest(flat(policy.model.parameters())) == model
    assert digest(middle.master) == master


def test_a_plain_decode_afterwards_is_as_before_even_after_an_error(tmp_path):
    policy, plain = load(tmp_path), [[Sequence(prompt=(1, 2), key=5)] for _ in range(2)]
    Decoder(policy, 1).run(plain[0], SAMPLING)
    names = list(policy.trained())
    with (
        pytest.raises(ValueError, match="prompt token"),
        Population(policy, asked(policy), everyone()) as population,
    ):
        assert list(policy.trained()) == names  # the parameter tree is as it was
        Decoder(policy, 1, population.rows).run([Sequence(prompt=(-1,), key=5)], SAMPLING)
    Decoder(policy, 1).run(plain[1], SAMPLING)
    assert (plain[0][0].tokens, plain[0][0].logprobs) == (plain[1][0].tokens, plain[1][0].logprobs)


def test_each_member_prefills_a_prompt_once_and_shares_nothing_of_it(tmp_path):
    policy = load(tmp_path)
    group = [Sequence(prompt=(1, 2, 3), key=k, member=m) for m in range(8) for k in range(3)]
    with Population(policy, asked(policy), everyone()) as population:
        decoder = Decoder(policy, 6, population.rows)
        decoder.run(group, SAMPLING)
    assert decoder.counts.prefilled_tokens == 8 * 3
    assert len({s.logprobs[0] for s in group if s.key == 0}) == 8


def test_only_the_factors_of_members_in_the_batch_exist(tmp_path):
    policy = load(tmp_path)
    sizes = {}
    for members_count in (16, 128):
        who = [Member(key, 1) for key in range(members_count)]
        most = 0

        def asked_between() -> int:
            nonlocal most
            tables = population._table.values()
            most = max(most, sum(factor.nbytes for both in tables for factor in both))
            return 0

        with Population(policy, asked(policy), who) as population:
            group = [Sequence(prompt=(1, 2), key=m, member=m) for m in range(members_count)]
            Decoder(policy, 8, population.rows).run(group, SAMPLING, 0, asked_between)
        sizes[members_count] = most
    assert 0 < sizes[128] <= 2 * sizes[16]


def test_interrupted_members_go_on_as_if_nothing_had_been(tmp_path):
    policy = load(tmp_path)
    which = asked(policy)
    whole = decode(policy, which, questions(8, 3), 10, SAMPLING)
    pieces = questions(8, 3)
    with Population(policy, which, everyone()) as population:
        decoder = Decoder(policy, 10, population.rows)
        while not all(s.finished for s in pieces):
            left = iter([0] * 5)
            decoder.run(pieces, SAMPLING, 0, lambda left=left: next(left, None))
    assert [s.tokens for s in pieces] == [s.tokens for s in whole]


# ── without sampling ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chunk_logits", [1, 1 << 24])
def test_likelihoods_are_those_of_the_perturbed_weights(tmp_path, monkeypatch, chunk_logits):
    monkeypatch.setattr("policies.evolution.likelihood.CHUNK_LOGITS", chunk_logits)
    policy = load(tmp_path)
    which = asked(policy)
    texts = [(*prompt, 5, 6, 7) for prompt in prompts(4)]
    longest = max(map(len, texts))
    who = np.array([0, 1, 1, 6])
    tokens_NT = np.zeros((4, longest), np.int32)
    answer_NT = np.zeros((4, longest), np.float32)
    for n, text in enumerate(texts):
        tokens_NT[n, : len(text)] = text
        answer_NT[n, len(text) - 3 : len(text)] = 1
    with Population(policy, which, everyone()) as population:
        ours_N = np.array(
            log_likelihoods(policy, population, who, mx.array(tokens_NT), mx.array(answer_NT))
        )
    middle = centre(policy, which)
    for ours, member, text in zip(ours_N, who, texts):
        answered = Sequence(prompt=text[:-3], key=0, tokens=list(text[-3:]))
        with middle.member_in(policy, everyone()[member]):
            assert explicit_logprobs(policy, answered, 1.0).sum() == pytest.approx(ours, abs=1e-4)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_full_rank_members_cannot_share_a_batch(tmp_path):
    policy = load(tmp_path)
    which = Perturbation(sigma=SIGMA, rank=0, noise="rademacher", shapes={})
    with pytest.raises(ValueError, match="cannot share a batch"):
        Population(policy, which, everyone())


def test_a_module_of_an_unknown_kind_is_named(tmp_path):
    policy = load(tmp_path)
    shapes = {"model.norm.weight": (64,)}
    which = Perturbation(sigma=SIGMA, rank=1, noise="rademacher", shapes=shapes)
    with pytest.raises(BadInput, match=r'model\.norm is a RMSNorm, it needs "full_rank"'):
        Population(policy, which, everyone())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 65}, r"rank = 65 needs to be at most .* \[\d+, \d+\]"),
        ({"modules": ["mlp.nothing"]}, "'mlp.nothing' is no trained module"),
        ({"layers": 1, "modules": ["mlp.up"]}, "'mlp.up' is no trained module"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tmp_path, settings, words):
    policy = load(tmp_path)
    with pytest.raises(BadInput, match=words):
        asked(policy, **settings)


def test_rank_is_held_against_the_adapters_rank(tmp_path):
    policy = load(tmp_path, train=Lora(rank=2))
    with pytest.raises(BadInput, match="rank = 3 needs to be at most"):
        asked(policy, rank=3)


def test_vectors_are_held_still_by_low_rank_noise_and_moved_by_full(tmp_path):
    from configs.algorithms.evolution import Es
    from policies.evolution.perturbation import perturbation

    policy = load(tmp_path)
    vectors = {n for n, w in policy.trained().items() if w.ndim == 1}
    assert vectors and not vectors & asked(policy).shapes.keys()
    assert vectors <= perturbation(Es(perturbation=FullRank()), policy).shapes.keys()
    matrices = perturbation(Es(perturbation=FullRank(vectors=False)), policy).shapes
    assert matrices == asked(policy).shapes
    assert VOCABULARY in next(iter(matrices.values()))  # the embedding is a matrix like any other


def test_full_rank_members_that_a_pause_keeps_waiting_are_not_made(tmp_path, monkeypatch):
    policy = load(tmp_path)
    es = Es(population=6, perturbation=FullRank())
    loader = EvolutionWeightLoader(
        policy, Settings(model=Model(path=str(tmp_path)), task=Sorting(), algorithm=es)
    )
    monkeypatch.setattr(Centre, "member_in", None)  # whoever makes one fails
    sequences = questions(6, 2)
    sampling = Sampling(temperature=0.0, max_new_tokens=4)
    loader.decode(1, range(6), sequences, sampling, 0, lambda: None)
    assert {s.stop_reason for s in sequences} == {StopReason.INTERRUPTED}
    assert not any(s.tokens for s in sequences)
