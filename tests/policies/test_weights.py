"""Stored weights: one digest for equal values, and nothing damaged is ever loaded."""

import mlx.core as mx
import pytest

from policies import weights
from runtime.errors import Damaged


def arrays() -> dict[str, mx.array]:
    return {
        "b": mx.arange(6, dtype=mx.float32).reshape(2, 3),
        "a.x": mx.array([1.5, -2.0, 3.0], mx.bfloat16),
        "a.y": mx.array([[7]], mx.uint32),
        "scalar": mx.array(3, mx.int64),
    }


def test_the_digest_does_not_depend_on_the_order():
    assert weights.digest(arrays()) == weights.digest(dict(reversed(arrays().items())))


@pytest.mark.parametrize(
    "change",
    [
        {"b": mx.arange(6, dtype=mx.float32).reshape(3, 2)},
        {"b": mx.arange(6, dtype=mx.int32).reshape(2, 3)},
        {"b": mx.array([[0, 1, 2], [3, 4, 5.0000005]])},
        {"a.x": mx.array([1.5, -2.0, 3.0], mx.float16)},
        {"a.z": mx.zeros(1)},
    ],
    ids=["shape", "dtype", "last bit", "half", "more"],
)
def test_the_digest_depends_on_everything_else(change):
    assert weights.digest({**arrays(), **change}) != weights.digest(arrays())


def test_the_digest_is_of_values_not_of_memory():
    whole = mx.arange(12, dtype=mx.float32).reshape(3, 4)
    view = {"w": whole.T[1:]}
    packed = {"w": mx.array(view["w"].tolist())}
    assert weights.digest(view) == weights.digest(packed)


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "weights.safetensors"
    digest = weights.save(path, arrays())
    loaded = weights.load(path, digest)
    assert digest == weights.digest(arrays()) == weights.digest(loaded)
    assert {k: v.dtype for k, v in loaded.items()} == {k: v.dtype for k, v in arrays().items()}
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_save_replaces_the_first(tmp_path):
    path = tmp_path / "weights.safetensors"
    first = weights.save(path, arrays())
    kept = weights.load(path, first)
    second = weights.save(path, {"b": mx.zeros(2)})
    with pytest.raises(Damaged, match="needs digest"):
        weights.load(path, first)
    assert list(weights.load(path, second)) == ["b"]
    assert weights.digest(kept) == first  # loaded means read, not promised


def test_any_flipped_bit_is_found(tmp_path):
    path = tmp_path / "weights.safetensors"
    digest = weights.save(path, arrays())
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for position in (9, header // 2, *range(header, len(good))):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match=str(path)):
            weights.load(path, digest)


def test_any_truncation_is_found(tmp_path):
    path = tmp_path / "weights.safetensors"
    digest = weights.save(path, arrays())
    good = path.read_bytes()
    for size in (0, 5, 8, 100, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(Damaged, match=str(path)):
            weights.load(path, digest)


def test_a_missing_file_is_damage(tmp_path):
    with pytest.raises(Damaged, match="cannot be read"):
        weights.load(tmp_path / "weights.safetensors", "0")


def test_a_failed_write_is_an_oserror_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    digest = weights.save(path, arrays())
    with pytest.raises(OSError):
        weights.save(tmp_path / "nowhere" / "weights.safetensors", arrays())
    assert weights.load(path, digest)
