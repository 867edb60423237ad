"""Noise against its reference, its distribution, and the bits that may never change."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kernels.noise import GOLDEN, Kind, noise, noise_plain
from runtime.keys import derive, mix

ROOT = Path(__file__).parents[2]
KINDS: tuple[Kind, ...] = ("rademacher", "uniform", "normal")
KEYS = np.array([0, 1, 2**63 + 12345, 2**64 - 1, derive(1, "noise")], np.uint64)
PINNED = {
    "rademacher": "056560bbe0ad7482",
    "uniform": "c2f1c3fce1dfb5a4",
    "normal": "963d6a817278dd28",
}
"""SHA-256 of the streams of KEYS. If one changes, runs in progress cannot be replayed."""
each_kind = pytest.mark.parametrize("kind", KINDS)


def sha(kind: Kind) -> str:
    return hashlib.sha256(np.array(noise(KEYS, 1001, kind)).tobytes()).hexdigest()[:16]


@each_kind
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 65, 200])
def test_it_is_the_reference_bit_for_bit(kind, count):
    ours_PN = np.array(noise(KEYS, count, kind))
    assert ours_PN.shape == (len(KEYS), count) and ours_PN.dtype == np.float32
    for key, ours_N in zip(KEYS, ours_PN):
        assert np.array_equal(ours_N, noise_plain(int(key), count, kind))


def test_the_words_are_the_streams_of_runtime_keys():
    counter = np.arange(1, 5, dtype=np.uint64)
    with np.errstate(over="ignore"):
        words = mix(KEYS[2] + counter * np.uint64(GOLDEN)).view(np.uint32)
    bits_N32 = (words[:, None] >> (31 - np.arange(32, dtype=np.uint32))) & 1
    ours_N = np.array(noise(KEYS[2:3], 256, "rademacher"))[0]
    assert np.array_equal(ours_N < 0, bits_N32.ravel() == 1)


@each_kind
def test_the_bits_are_those_of_every_other_process_and_version(kind):
    code = f"from tests.kernels.test_noise import sha; print(sha({kind!r}))"
    environment = {**os.environ, "PIPPIN_EXACT": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout.strip() == sha(kind) == PINNED[kind], done.stderr


@each_kind
def test_a_longer_stream_begins_with_the_shorter(kind):
    assert mx.array_equal(noise(KEYS, 500, kind)[:, :77], noise(KEYS, 77, kind))


@each_kind
def test_mean_and_covariance_are_those_of_white_noise(kind):
    keys = np.array([derive("white", n) for n in range(8)], np.uint64)
    values_PN = np.array(noise(keys, 200_000, kind), np.float64)
    assert np.abs(values_PN.mean(axis=1)).max() < 4 * 200_000**-0.5
    lagged = np.concatenate([values_PN[:, :-1], values_PN[:, 1:]])
    covariance = lagged @ lagged.T / lagged.shape[1]
    assert np.abs(covariance - np.eye(16)).max() < 5 * 200_000**-0.5


def test_the_kinds_have_the_tails_that_they_say():
    values = {kind: np.array(noise(KEYS[-1:], 100_000, kind), np.float64)[0] for kind in KINDS}
    assert set(values["rademacher"]) == {-1.0, 1.0}
    assert 1.73 < np.abs(values["uniform"]).max() < 3**0.5
    assert 3.2 < np.abs(values["normal"]).max() < 3.5
    kurtosis = {kind: (v**4).mean() for kind, v in values.items()}
    assert kurtosis["rademacher"] == 1
    assert kurtosis["uniform"] == pytest.approx(1.8, abs=0.03)
    assert kurtosis["normal"] == pytest.approx(2.7, abs=0.06)  # 3 for a Gaussian
