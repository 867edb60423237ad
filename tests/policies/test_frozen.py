"""A teacher: the same numbers as the policy of its weights, NaN where it cannot know, never trained."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from configs.model import Model
from configs.teachers import LocalTeacher
from kernels.logprobs import score
from policies.batch import Row, pack
from policies.frozen import Frozen, load_teacher
from policies.load import load_policy
from tests.policies.checkpoints import VOCABULARY, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("frozen") / "model", "qwen3")


def micro_of(*rows: list[int]):
    made = [Row(np.array(ids, np.int32), np.arange(2, len(ids)), {}) for ids in rows]
    (micro,) = pack(made, 4096)
    return micro


def test_it_says_what_the_policy_of_its_weights_says(folder):
    micro = micro_of([1, 2, 3, 4, 5], [7, 8, 9])
    teacher = load_teacher(LocalTeacher(path=str(folder)))
    policy = load_policy(Model(path=str(folder)), folder, seed=0)
    hidden_BRD = mx.take_along_axis(
        policy.hidden(micro.tokens_BT), micro.sources_BR[..., None], axis=1
    )
    flat_ND = hidden_BRD.reshape(-1, hidden_BRD.shape[-1])
    expected_N = score(flat_ND, policy.project, micro.targets_BR.reshape(-1), temperature=0.8)
    assert np.array_equal(np.array(teacher.logprobs(micro, 0.8)), np.array(expected_N))
    assert np.array_equal(np.array(teacher.full(micro).hidden_ND), np.array(flat_ND))
    assert teacher.policy.trained() == {}


def test_its_top_k_holds_the_likeliest_and_adds_up(folder):
    teacher = load_teacher(LocalTeacher(path=str(folder)))
    said = teacher.top_k(micro_of([1, 2, 3, 4, 5]), 5, 1.0)
    mass_N = np.exp(np.array(said.logprobs_NK)).sum(axis=-1) + np.exp(np.array(said.tail_N))
    assert np.allclose(mass_N, 1.0, atol=1e-5)


def test_a_quantised_teacher_is_loaded_and_not_trained(folder):
    teacher = load_teacher(LocalTeacher(path=str(folder), quantize_bits=4))
    assert teacher.policy.trained() == {}
    assert bool(mx.isfinite(teacher.logprobs(micro_of([1, 2, 3, 4]), 1.0)).all())


def test_behind_an_id_that_is_not_its_own_it_knows_nothing(folder):
    teacher = load_teacher(LocalTeacher(path=str(folder)))
    micro = micro_of([1, 2, 3, VOCABULARY, 5, 6])
    known = np.isfinite(np.array(teacher.logprobs(micro, 1.0)))[:4].tolist()
    assert known == [True, False, False, False]  # the foreign id itself has no probability
    hidden = np.isfinite(np.array(teacher.full(micro).hidden_ND).sum(axis=-1))[:4].tolist()
    assert hidden == [True, True, False, False]  # but the distribution there is known
    assert np.isfinite(np.array(teacher.top_k(micro, 3, 1.0).logprobs_NK))[:4, 0].tolist() == hidden


def test_beyond_its_context_it_knows_nothing(folder):
    policy = load_teacher(LocalTeacher(path=str(folder))).policy
    policy.context_length = 4
    known = np.isfinite(np.array(Frozen(policy).logprobs(micro_of([1, 2, 3, 4, 5, 6]), 1.0)))
    assert known[:4].tolist() == [True, True, True, False]
