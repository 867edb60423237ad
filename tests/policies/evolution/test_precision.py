"""Steps that rounding would swallow are noticed, with the number that would do."""

import mlx.core as mx
import pytest

from configs.algorithms.evolution import Es
from configs.perturbations import AdamwStep, FullRank, PlainStep
from policies.evolution.perturbation import Perturbation
from policies.evolution.precision import expected_move, lost_share, problems

NAME, NORM = "layers.0.a.weight", "norm.weight"


def found(es: Es, dtype: mx.Dtype, scale: float = 0.02, learning_rate: float = 1e-5, norm=False):
    shapes = {NAME: (64, 64), **({NORM: (64,)} if norm else {})}
    master = {NAME: scale * mx.random.normal((64, 64), key=mx.random.key(0)), NORM: mx.ones(64)}
    which = Perturbation(sigma=es.sigma, rank=1, noise=es.noise, shapes=shapes)
    dtypes = dict.fromkeys(shapes, dtype)
    return list(problems(es, which, master, dtypes, learning_rate))


def test_the_share_that_is_lost_grows_with_the_weights():
    normal = mx.random.normal((4096, 64), key=mx.random.key(0))
    shares = [lost_share(scale * normal, 1e-3, mx.bfloat16) for scale in (0.02, 0.1, 0.5, 2.0)]
    assert shares[0] == 0 and shares == sorted(shares)
    assert shares[1] < 0.02 and 0.3 < shares[2] < 0.7 and shares[3] > 0.7
    assert lost_share(mx.ones(64), 1e-3, mx.bfloat16) == 1.0
    assert lost_share(mx.array([1.0]), 3e-3, mx.bfloat16) == 0.5
    assert lost_share(2.0 * normal, 1e-3, mx.float32) == 0.0


def test_the_usual_numbers_pass():
    assert found(Es(), mx.bfloat16) == []
    assert found(Es(), mx.float32, scale=1.0) == []
    assert found(Es(update=AdamwStep()), mx.float16) == []


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_sigma_below_the_rounding_is_refused_with_one_that_would_do(dtype):
    es = Es(sigma=1e-8)
    (sentence,) = found(es, dtype)
    assert sentence.startswith(f"algorithm.sigma = 1e-08 is lost in {str(dtype).split('.')[-1]}")
    assert NAME in sentence
    needed = float(sentence.rpartition("at least ")[2])
    assert found(Es(sigma=1.5 * needed), dtype) == []
    assert found(es, mx.float32, scale=0.001) == []


def test_a_step_below_the_masters_rounding_is_refused():
    (sentence,) = found(Es(update=PlainStep(alpha=1e-10)), mx.float32, scale=1.0)
    assert sentence.startswith("algorithm.update.alpha = 1e-10 is lost in float32")
    (sentence,) = found(Es(update=AdamwStep()), mx.float32, scale=1.0, learning_rate=1e-10)
    assert sentence.startswith("optimizer.learning_rate = 1e-10 is lost in float32")


def test_norms_in_half_precision_are_better_left_alone():
    (sentence,) = found(Es(perturbation=FullRank()), mx.bfloat16, norm=True)
    assert NORM in sentence and sentence.endswith("algorithm.perturbation.vectors = false")


def test_the_move_of_a_step_shrinks_with_the_population():
    moves = [expected_move(Es(population=n, update=PlainStep(alpha=1.0)), 0) for n in (4, 16)]
    assert moves == [0.5, 0.25]
    ranks = Es(population=4, update=PlainStep(alpha=1.0), shaping="centered_ranks")
    assert expected_move(ranks, 0) == pytest.approx(0.144, abs=1e-3)
