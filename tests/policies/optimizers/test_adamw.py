"""AdamW against MLX's own, and what is ours: masters, state, refusal of bad gradients."""

import math

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from configs.run import Optimizer
from policies import weights as stored
from policies.optimizers.adamw import AdamW

DIGEST = "6d251dca2bccbd8a25422f2931c179b4bd7f007c5f5aa3b17df9d8f8c227b842"
"""Of a state, as checkpoints of older runs have it."""
SHAPES = {"head.weight": (8, 4), "layers.0.norm": (4,), "layers.1.norm": (4,)}


def arrays(seed: int, scale: float = 1.0, dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    keys = mx.random.split(mx.random.key(seed), len(SHAPES))
    return {
        name: (scale * mx.random.normal(shape, key=key)).astype(dtype)
        for (name, shape), key in zip(SHAPES.items(), keys)
    }


def same(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> bool:
    return ours.keys() == theirs.keys() and all(mx.array_equal(ours[k], theirs[k]) for k in ours)


def test_it_is_mlxs_adamw():
    settings = Optimizer(learning_rate=0.01, weight_decay=0.1, beta2=0.95, max_grad_norm=0)
    ours = AdamW(settings, arrays(0), steps=5)
    theirs = optim.AdamW(0.01, betas=[0.9, 0.95], weight_decay=0.1, bias_correction=True)
    mine = plain = arrays(0)
    for step in range(5):
        gradients = arrays(10 + step)
        mine, norm, rate = ours.step(mine, gradients)
        plain = theirs.apply_gradients(gradients, plain)
        squares = sum(float(mx.square(g).sum().item()) for g in gradients.values())  # type: ignore[arg-type]
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)
        assert rate == 0.01
    assert same(mine, plain)


def test_it_follows_the_paper():
    """Two steps on one number, by hand (Loshchilov & Hutter 2019, algorithm 2)."""
    settings = Optimizer(learning_rate=0.1, weight_decay=0.5, max_grad_norm=0)
    optimizer = AdamW(settings, {"w": mx.array([2.0])}, steps=2)
    weights, w, m, v = {"w": mx.array([2.0])}, 2.0, 0.0, 0.0
    for t, g in ((1, 0.3), (2, -1.2)):
        weights, _, _ = optimizer.step(weights, {"w": mx.array([g])})
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w -= 0.1 * (update + 0.5 * w)
    assert weights["w"].item() == pytest.approx(w, rel=1e-5)


def test_a_long_gradient_is_scaled_down_to_the_limit():
    settings = Optimizer(learning_rate=0.1, max_grad_norm=1.0)
    clipped, plain = (AdamW(settings, arrays(0), steps=2) for _ in range(2))
    _, norm, _ = clipped.step(arrays(0), arrays(1, scale=100))
    moment = clipped.state()["m.head.weight"]
    np.testing.assert_allclose(
        np.array(moment), 0.1 * np.array(arrays(1, scale=100)["head.weight"]) / norm, rtol=1e-5
    )
    short = arrays(1, scale=1e-3)
    plain.step(arrays(0), short)
    np.testing.assert_allclose(
        np.array(plain.state()["m.head.weight"]), 0.1 * np.array(short["head.weight"]), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_masters_keep_what_half_precision_would_lose(dtype):
    settings = Optimizer(learning_rate=1e-5, max_grad_norm=0)
    weights = {"w": mx.ones(4, dtype)}
    gradients = {"w": mx.full((4,), -0.3, dtype)}
    optimizer = AdamW(settings, weights, steps=1000)
    lost = mx.ones(4, dtype) + mx.array(1e-5, dtype)
    assert mx.array_equal(lost, weights["w"])  # one step alone moves nothing
    for _ in range(1000):
        weights, _, _ = optimizer.step(weights, gradients)
    assert weights["w"].dtype == dtype
    np.testing.assert_allclose(np.array(weights["w"].astype(mx.float32)), 1.01, atol=2**-8)
    assert not mx.array_equal(weights["w"], lost)
    master = optimizer.state()["master.w"]
    assert master.dtype == mx.float32
    np.testing.assert_allclose(np.array(master), 1.01, atol=5e-5)  # a thousand roundings


def test_full_precision_weights_are_their_own_masters():
    optimizer = AdamW(Optimizer(), arrays(0), steps=1)
    assert not any(name.startswith("master.") for name in optimizer.state())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_restored_state_goes_on_bit_for_bit(tmp_path, dtype):
    settings = Optimizer(learning_rate=0.01, schedule="cosine", warmup_steps=2, weight_decay=0.1)

    def steps(optimizer, weights, which):
        for step in which:
            weights, *_ = optimizer.step(weights, arrays(10 + step, dtype=dtype))
        return weights

    whole = AdamW(settings, arrays(0, dtype=dtype), steps=8)
    straight = steps(whole, arrays(0, dtype=dtype), range(8))

    first = AdamW(settings, arrays(0, dtype=dtype), steps=8)
    half = steps(first, arrays(0, dtype=dtype), range(3))
    digest = stored.save(tmp_path / "state.safetensors", first.state())
    second = AdamW(settings, half, steps=8)
    second.restore(stored.load(tmp_path / "state.safetensors", digest))
    assert second.updates == 3
    assert same(second.state(), first.state())
    assert same(steps(second, half, range(3, 8)), straight)
    assert same(second.state(), whole.state())


def test_the_state_of_another_model_is_refused():
    optimizer = AdamW(Optimizer(), arrays(0), steps=1)
    other = AdamW(Optimizer(), {"w": mx.zeros(2)}, steps=1)
    with pytest.raises(ValueError, match=r"does not fit this model: m\.head\.weight"):
        optimizer.restore(other.state())
    with pytest.raises(ValueError, match="does not fit this model: shapes"):
        optimizer.restore({k: mx.zeros((3, *v.shape)) for k, v in optimizer.state().items()})


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(poison):
    optimizer = AdamW(Optimizer(learning_rate=0.01), arrays(0), steps=4)
    weights, *_ = optimizer.step(arrays(0), arrays(1))
    before = optimizer.state()
    gradients = arrays(2)
    gradients["layers.0.norm"][1] = poison
    with pytest.raises(FloatingPointError, match="gradient's norm is"):
        optimizer.step(weights, gradients)
    assert same(optimizer.state(), before)
    after, *_ = optimizer.step(weights, arrays(2))
    assert all(np.isfinite(np.array(array)).all() for array in after.values())


def test_the_rate_in_use_is_the_schedules():
    settings = Optimizer(learning_rate=0.1, schedule="linear", max_grad_norm=0)
    optimizer = AdamW(settings, {"w": mx.array([1.0])}, steps=4)
    weights = {"w": mx.array([1.0])}
    for share in (1, 0.75, 0.5, 0.25):
        before = weights["w"].item()
        weights, _, rate = optimizer.step(weights, {"w": mx.array([2.0])})
        assert rate == pytest.approx(0.1 * share)
        assert before - weights["w"].item() == pytest.approx(0.1 * share, rel=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_it_keeps_for_a_weight_is_what_it_says(dtype):
    optimizer = AdamW(Optimizer(), arrays(0, dtype=dtype), steps=1)
    kept = [a for name, a in optimizer.state().items() if a.size > 1 and "master." not in name]
    weights = sum(array.size for array in arrays(0).values())
    assert sum(array.size for array in kept) == AdamW.STATE_PER_WEIGHT * weights
    assert all(array.dtype == mx.float32 for array in kept)


def test_its_state_on_disk_has_the_names_and_bits_that_checkpoints_of_runs_have():
    optimizer = AdamW(Optimizer(learning_rate=0.01), {"w": mx.array([1.0, -2.0])}, steps=4)
    optimizer.step({"w": mx.array([1.0, -2.0])}, {"w": mx.array([0.5, 0.25])})
    state = optimizer.state()
    assert sorted(state) == ["m.w", "step", "updates", "v.w"]
    assert (state["step"].dtype, state["updates"].dtype) == (mx.uint64, mx.int64)
    assert stored.digest(state) == DIGEST


def test_masters_are_saved_under_their_weights_names():
    optimizer = AdamW(Optimizer(), {"w": mx.ones(2, mx.bfloat16)}, steps=1)
    assert sorted(optimizer.state()) == ["m.w", "master.w", "step", "updates", "v.w"]
