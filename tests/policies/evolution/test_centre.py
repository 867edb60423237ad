"""Steps of the master, anchors, and replay of a log to the same bits."""

import math
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from configs.algorithms.evolution import Es
from configs.model import Lora
from configs.perturbations import (
    AdamwStep,
    AnchorL2,
    AnchorSoft,
    Free,
    FullRank,
    LowRank,
    PlainStep,
)
from configs.run import Optimizer
from policies.evolution.centre import Applied, Centre, Lineage, anchored, distance
from policies.evolution.fitness import combine
from policies.evolution.perturbation import combined, members, perturbation
from policies.optimizers.adamw import AdamW
from policies.weights import digest
from runtime.errors import Damaged
from tests.policies.evolution.populations import load

ROOT = Path(__file__).parents[3]
OPTIMIZER = Optimizer(learning_rate=1e-3)


def make(policy, es: Es) -> Centre:
    middle = Centre(policy, perturbation(es, policy), es.update, es.anchor)
    if isinstance(es.update, AdamwStep):
        middle.optimizer = AdamW(OPTIMIZER, middle.master, steps=200)
    return middle


def log(es: Es, generations: int) -> list[list]:
    """Terms of generations with made-up fitness; one is flat."""
    terms = []
    for generation in range(generations):
        group = members(0, generation, es.population, es.antithetic)
        flat = generation == 3
        fitness = [[0.0 if flat else math.sin(generation + 7 * n)] for n in range(len(group))]
        rank = es.perturbation.rank if isinstance(es.perturbation, LowRank) else 0
        terms.append(combine(group, fitness, es.shaping, rank).terms)
    return terms


VARIANTS = {
    "low": Es(population=8, update=PlainStep(alpha=0.01)),
    "rank 4": Es(population=8, perturbation=LowRank(rank=4), anchor=AnchorL2(strength=0.1)),
    "normal": Es(population=6, noise="normal", anchor=AnchorSoft(strength=1e-3)),
    "full": Es(population=6, perturbation=FullRank(), antithetic=False),
    "adamw": Es(population=8, update=AdamwStep(), anchor=AnchorL2(strength=0.1)),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def replayed(folder: Path, variant: str, generations: int) -> str:
    """The digest of the weights after a replay from the base."""
    middle = make(load(folder), VARIANTS[variant])
    lineage = Lineage(base=middle.base, generations=log(VARIANTS[variant], generations))
    middle.replay(msgspec.msgpack.decode(msgspec.msgpack.encode(lineage), type=Lineage))
    return digest(middle.master)


# ── replay ───────────────────────────────────────────────────────────────────────────────────────


@each_variant
def test_replaying_the_log_gives_the_weights_bit_for_bit(tmp_path, variant):
    policy = load(tmp_path)
    middle = make(policy, VARIANTS[variant])
    for terms in log(VARIANTS[variant], 12):
        middle.apply(terms)
        middle.into(policy)  # as a run does: the master does not come from the model again
    assert replayed(tmp_path, variant, 12) == digest(middle.master)


@pytest.mark.parametrize("variant", ["low", "adamw"])
def test_200_generations_in_another_process_on_another_blas(tmp_path, variant):
    load(tmp_path)
    code = (
        "from runtime.blas import load_blas; assert load_blas(exact=True) != 'openblas'\n"
        "from pathlib import Path; from tests.policies.evolution import test_centre as t\n"
        f"print(t.replayed(Path({str(tmp_path)!r}), {variant!r}, 200))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PIPPIN_EXACT": "1"},
    )
    assert done.stdout.strip() == replayed(tmp_path, variant, 200), done.stderr


def test_a_generation_travels_in_few_bytes():
    lineage = Lineage(base="0" * 64, generations=log(Es(population=32), 1))
    assert len(msgspec.msgpack.encode(lineage)) < 500


def test_a_log_of_another_base_is_refused(tmp_path):
    middle = make(load(tmp_path), VARIANTS["low"])
    with pytest.raises(Damaged, match="needs base 000000"):
        middle.replay(Lineage(base="0" * 64, generations=[]))


@each_variant
def test_a_saved_state_goes_on_as_if_never_stopped(tmp_path, variant):
    policy, terms = load(tmp_path), log(VARIANTS[variant], 9)
    whole, second = (make(policy, VARIANTS[variant]) for _ in range(2))
    for each in terms[:5]:
        whole.apply(each)
    second.restore({name: mx.array(np.array(array)) for name, array in whole.state().items()})
    for each in terms[5:]:
        whole.apply(each)
        second.apply(each)
    assert digest(whole.master) == digest(second.master)


def test_the_state_of_another_model_is_refused(tmp_path):
    middle = make(load(tmp_path), VARIANTS["low"])
    state = middle.state()
    state.pop(next(iter(state)))
    with pytest.raises(ValueError, match="master does not fit this model: master"):
        middle.restore(state)


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_step_is_alpha_times_the_mean(tmp_path):
    es = VARIANTS["low"]
    middle, terms = make(load(tmp_path), es), log(es, 1)[0]
    before = dict(middle.master)
    applied = middle.apply(terms)
    squares = 0.0
    for name, weight in middle.master.items():
        moved = 0.01 * np.array(combined(middle.perturbation, name, terms))
        np.testing.assert_allclose(np.array(weight - before[name]), moved, atol=1e-8)
        squares += float((moved.astype(np.float64) ** 2).sum())
    assert applied.update_norm == pytest.approx(math.sqrt(squares), rel=1e-4)
    assert applied.rate == 0.01


def test_an_adamw_step_climbs_along_the_mean(tmp_path):
    es = VARIANTS["adamw"]
    middle, terms = make(load(tmp_path), es), log(es, 1)[0]
    before = dict(middle.master)
    assert middle.apply(terms).rate == OPTIMIZER.learning_rate
    for name, weight in middle.master.items():
        mean = np.array(combined(middle.perturbation, name, terms))
        clear = np.abs(mean) > 1e-3
        assert (np.sign(np.array(weight - before[name]))[clear] == np.sign(mean)[clear]).all()


@each_variant
def test_without_terms_nothing_moves(tmp_path, variant):
    middle = make(load(tmp_path), VARIANTS[variant])
    middle.apply(log(VARIANTS[variant], 1)[0])
    before, state = digest(middle.master), digest(middle.state())
    assert middle.apply([]) == Applied(0.0, 0.0)
    assert (digest(middle.master), digest(middle.state())) == (before, state)


def test_adamw_without_its_optimizer_is_refused(tmp_path):
    es = VARIANTS["adamw"]
    policy = load(tmp_path)
    middle = Centre(policy, perturbation(es, policy), es.update, es.anchor)
    with pytest.raises(ValueError, match=r"needs Centre\.optimizer"):
        middle.apply(log(es, 1)[0])


@pytest.mark.parametrize("train", [None, Lora(rank=2)])
def test_half_precision_models_have_a_float32_master(tmp_path, train):
    settings = {"train": train} if train else {}
    policy = load(tmp_path, dtype="bfloat16", **settings)
    es = Es(population=8, sigma=1e-3, update=PlainStep(alpha=1e-6))
    middle, generations = make(policy, es), log(es, 30)
    before = dict(middle.master)
    for terms in generations:
        middle.apply(terms)
    middle.into(policy)
    assert {w.dtype for w in middle.master.values()} == {mx.float32}
    assert {n: policy.trained()[n].dtype for n in middle.dtypes} == middle.dtypes
    expected = sum(
        middle.apply(terms).update_norm ** 2 for terms in generations
    )  # nearly orthogonal steps
    assert distance(middle.master, before) ** 2 > 0.5 * expected  # none was lost


def test_full_rank_members_come_from_the_master_one_after_another(tmp_path):
    policy = load(tmp_path, dtype="bfloat16")
    es = Es(population=6, sigma=0.01, perturbation=FullRank(vectors=False))
    middle = make(policy, es)
    centre_digest, master = digest(policy.trained()), digest(middle.master)
    seen = set()
    for member in members(0, 0, 6, True):
        with middle.member_in(policy, member):
            seen.add(digest(policy.trained()))
            for name in middle.master:
                assert policy.trained()[name].dtype == mx.bfloat16
    assert len(seen) == 6
    assert (digest(policy.trained()), digest(middle.master)) == (centre_digest, master)


# ── anchors ──────────────────────────────────────────────────────────────────────────────────────


def test_anchors_by_hand():
    origin = mx.array([1.0, 1.0, 1.0, -2.0])
    weight = mx.array([1.5, 0.98, 1.0, -3.0])
    l2 = anchored(weight, origin, AnchorL2(strength=2.0), rate=0.1)
    np.testing.assert_allclose(np.array(l2), [1.4, 0.984, 1.0, -2.8], rtol=1e-6)
    soft = anchored(weight, origin, AnchorSoft(strength=0.5), rate=0.1)
    np.testing.assert_allclose(np.array(soft), [1.45, 1.0, 1.0, -2.95], rtol=1e-6)
    assert mx.array_equal(anchored(weight, origin, Free(), rate=0.1), weight)


def test_an_anchor_bounds_the_drift_of_a_random_walk(tmp_path):
    drift = {}
    for name, anchor in (("free", Free()), ("l2", AnchorL2(strength=20.0))):
        es = Es(population=8, update=PlainStep(alpha=0.01), anchor=anchor)
        policy = load(tmp_path)
        middle = make(policy, es)
        before = dict(middle.master)
        for terms in log(es, 40):
            middle.apply(terms)
        drift[name] = distance(middle.master, before)
    assert drift["l2"] < 0.5 * drift["free"]
