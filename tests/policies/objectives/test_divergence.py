"""The divergence term in the loss of a step, for every kind of divergence and of teacher.

Shapes: B sequences, T tokens in each, D hidden width, V vocabulary.
"""

import math
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from configs.model import Full as TrainFull
from configs.model import Lora, Model
from kernels.divergence import Divergence, per_token_plain
from kernels.sampling import sample
from kernels.teacher import Full, top_k
from policies.arrays import flat
from policies.load import load_policy
from policies.objectives.batch import Batch, Outputs
from policies.objectives.divergence import Signal, signal, weighted
from policies.objectives.normalise import denominators
from policies.objectives.terms import Counts, add_up, loss, summary, to_floats
from policies.policy import Policy
from policies.teacher_advantages import annotated, combined, per_token
from policies.terms import CrossEntropy, PolicyGradient
from policies.terms import Divergence as DivergenceTerm
from runtime.keys import derive, uniform
from tests.policies.checkpoints import write

PG, CE, DIVERGENCE = PolicyGradient.weight, CrossEntropy.weight, DivergenceTerm.weight
TERM = DivergenceTerm(kind="forward")
"""The term in a list of terms: which divergence its signal is of was decided when that was made."""
LENGTHS = [2, 6, 4, 1]
B, T, D, V = 4, 6, 8, 13
DIVERGENCES = [
    Divergence(kind="forward", temperature=2.0),
    Divergence(kind="reverse"),
    Divergence(kind="jsd", beta=0.3),
    Divergence(kind="skewed_forward"),
    Divergence(kind="skewed_reverse"),
    Divergence(kind="total_variation"),
]
TEACHERS = ["full", "top_k"]
CASES = [(d, t) for d in DIVERGENCES for t in TEACHERS]
each_case = pytest.mark.parametrize(
    ("divergence", "kind"), CASES, ids=[f"{d.kind}-{t}" for d, t in CASES]
)


def project(hidden: mx.array, weight: mx.array) -> mx.array:
    return hidden @ weight.T


def problem(seed: int = 0):
    """Hidden states of student and teacher [B, T, D], their heads, and the tokens' weights."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> mx.array:
        return mx.array(generator.normal(size=shape).astype(np.float32))

    covered = (np.arange(T) < np.array(LENGTHS)[:, None]).astype(np.float32)
    weight = mx.array((covered * generator.uniform(0.5, 1.5, (B, T))).astype(np.float32))
    return normal(B, T, D), normal(V, D), normal(B, T, D), normal(V, D), weight


def counts(lengths=LENGTHS) -> Counts:
    return dict.fromkeys((PG, CE, DIVERGENCE), denominators(lengths, T))


def teacher_of(kind: str, hidden: mx.array, head: mx.array, temperature: float):
    full = Full(hidden.reshape(-1, D), lambda h: project(h, head))
    return top_k(full, 4, temperature=temperature) if kind == "top_k" else full


class Result(NamedTuple):
    loss: float
    report: dict[str, float]
    to_hidden: np.ndarray
    to_head: np.ndarray


def gradient(divergence, kind, arrays, step=None, terms=(TERM,), batch=None) -> Result:
    hidden, head, their_hidden, their_head, weight = arrays
    teacher = teacher_of(kind, their_hidden, their_head, divergence.temperature)
    batch = batch or Batch(sampled_BT=mx.ones(weight.shape), weights={DIVERGENCE: weight})

    def function(hidden, head):
        said = signal(hidden.reshape(-1, D), project, (head,), teacher, divergence, weight)
        nothing = mx.zeros(weight.shape)
        outputs = Outputs(logprobs_BT=nothing, entropy_BT=nothing, signal=said)
        return loss(outputs, batch, terms, step or counts())

    (total, metrics), grads = mx.value_and_grad(function, argnums=(0, 1))(hidden, head)
    return Result(float(np.array(total)), to_floats(metrics), *map(np.array, grads))


def rows(arrays, part: slice):
    hidden, head, their_hidden, their_head, weight = arrays
    return hidden[part], head, their_hidden[part], their_head, weight[part]


@each_case
@pytest.mark.parametrize("parts", [2, 4])
def test_a_step_cut_into_micro_batches_is_the_same_step(divergence, kind, parts):
    arrays = problem()
    total, report, to_hidden, to_head = gradient(divergence, kind, arrays)
    cut = [slice(i, i + B // parts) for i in range(0, B, B // parts)]
    pieces = [gradient(divergence, kind, rows(arrays, part)) for part in cut]
    assert sum(p.loss for p in pieces) == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(np.concatenate([p.to_hidden for p in pieces]), to_hidden, atol=1e-6)
    np.testing.assert_allclose(np.sum([p.to_head for p in pieces], axis=0), to_head, atol=2e-6)
    assert add_up(p.report for p in pieces) == pytest.approx(report, rel=1e-4, abs=1e-5)


@each_case
def test_padding_changes_nothing(divergence, kind):
    arrays = problem()
    _, report, to_hidden, to_head = gradient(divergence, kind, arrays)
    hidden, head, their_hidden, their_head, weight = arrays
    wide = [(0, 0), (0, 3), (0, 0)]
    padded = mx.pad(weight, wide[:2])
    theirs = mx.pad(their_hidden, wide)
    theirs[:, T:] = mx.nan
    more = (mx.pad(hidden, wide), head, theirs, their_head, padded)
    _, same, to_more, to_same = gradient(divergence, kind, more)
    np.testing.assert_allclose(to_more[:, :T], to_hidden, atol=1e-7)
    np.testing.assert_allclose(to_same, to_head, atol=1e-6)
    assert not to_more[:, T:].any()
    assert same == pytest.approx(report, rel=1e-5, abs=1e-6)


@each_case
def test_rows_of_weight_zero_have_exactly_no_gradient_and_others_do(divergence, kind):
    hidden, head, their_hidden, their_head, weight = problem()
    weight[1] = 0
    arrays = (hidden, head, their_hidden, their_head, weight)
    _, report, to_hidden, to_head = gradient(divergence, kind, arrays, counts([2, 0, 4, 1]))
    assert not to_hidden[1].any()
    assert all(to_hidden[row].any() for row in (0, 2, 3))
    assert report["divergence_tokens"] == 7
    moved = (
        hidden,
        head,
        mx.where(mx.arange(B)[:, None, None] == 1, 9.0, their_hidden),
        their_head,
    )
    _, same, _, to_same = gradient(divergence, kind, (*moved, weight), counts([2, 0, 4, 1]))
    np.testing.assert_array_equal(to_same, to_head)
    assert same == report


@each_case
def test_without_weights_nothing_moves(divergence, kind):
    *arrays, weight = problem()
    arrays.append(0 * weight)
    total, report, to_hidden, to_head = gradient(divergence, kind, arrays, counts([]))
    assert total == 0 and not to_hidden.any() and not to_head.any()
    assert "divergence_nats" not in summary(report)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.kind)
@pytest.mark.parametrize("kind", ["full", "top_k"])
def test_an_identical_teacher_gives_exactly_no_gradient(divergence, kind):
    hidden, head, _, _, weight = problem()
    total, report, *grads = gradient(divergence, kind, (hidden, head, hidden, head, weight))
    assert total == 0 and report["divergence_nats"] == 0
    assert not any(grad.any() for grad in grads)


def test_the_loss_is_the_weighted_mean_over_the_step_s_tokens():
    arrays = problem()
    hidden, head, their_hidden, their_head, weight = arrays
    divergence = Divergence(kind="jsd", beta=0.3)
    total, report, *_ = gradient(divergence, "full", arrays)
    teacher = Full(their_hidden.reshape(-1, D), lambda h: project(h, their_head))
    plain = np.array(per_token_plain(hidden.reshape(-1, D), project, (head,), teacher, divergence))
    weight = np.array(weight)
    assert total == pytest.approx((plain.reshape(B, T) * weight).sum() / sum(LENGTHS), rel=1e-5)
    mean = plain.reshape(B, T)[weight != 0].mean()
    assert summary(report)["divergence_nats"] == pytest.approx(mean, rel=1e-5)


def test_unusable_tokens_are_counted_train_nothing_and_do_not_make_the_others_count_for_more():
    arrays = problem()
    _, whole, to_hidden, _ = gradient(Divergence(), "full", arrays)
    arrays[2][1, 3] = mx.nan
    total, report, damaged, _ = gradient(Divergence(), "full", arrays)
    assert math.isfinite(total)
    assert (whole["unusable_tokens"], report["unusable_tokens"]) == (0, 1)
    assert report["divergence_tokens"] == sum(LENGTHS) - 1
    assert summary(report)["unusable_tokens"] == 1
    assert not damaged[1, 3].any()
    np.testing.assert_array_equal(np.delete(damaged[1], 3, 0), np.delete(to_hidden[1], 3, 0))


def test_the_three_terms_add_up():
    arrays = problem()
    generator = np.random.default_rng(1)
    covered = (arrays[-1] != 0).astype(mx.float32)
    batch = Batch(
        sampled_BT=covered,
        weights={PG: covered, CE: covered * 0.5, DIVERGENCE: arrays[-1]},
        advantages_BT=mx.array(generator.normal(size=(B, T)).astype(np.float32)),
        behaviour_logprobs_BT=mx.array(generator.normal(0, 0.1, (B, T)).astype(np.float32)),
    )
    terms = [PolicyGradient(), CrossEntropy(), TERM]
    total, report, *_ = gradient(Divergence(), "full", arrays, None, terms, batch)
    parts = report["pg_loss"] + report["ce_loss"] + report["divergence_loss"]
    assert total == pytest.approx(parts, rel=1e-5) and report["divergence_loss"] != 0
    means = summary(report)
    assert means["divergence_nats"] == pytest.approx(report["divergence_nats"] / sum(LENGTHS))
    assert means["unusable_tokens"] == 0


def test_what_the_term_needs_is_asked_for():
    step = {name: denominators(LENGTHS, T) for name in (PG, CE)}
    with pytest.raises(
        ValueError, match="the term Divergence needs the step's counts, got those of"
    ):
        gradient(Divergence(), "full", problem(), step)


def test_weights_of_zero_hide_whatever_is_there():
    weight = mx.array([[2.0, 0.0, 5.0]])
    said = Signal(mx.array([[1.0, math.nan, 3.0]]), mx.array([[True, True, False]]), weight)
    assert weighted(said, weight).tolist() == [[2.0, 0.0, 0.0]]


# ── with loaded checkpoints ──────────────────────────────────────────────────────────────────────


def loaded(folder: Path, family: str, **changes) -> Policy:
    # Quantised weights load with adapters only; new ones change nothing.
    train = Lora() if changes.get("quantized") else TrainFull()
    settings = Model(path=str(folder), train=train)
    return load_policy(settings, write(folder, family, **changes), seed=0)


def distil(student: Policy, teacher: Policy, divergence: Divergence):
    """Loss and gradients of the student on some tokens, the teacher in the same process."""
    tokens = mx.array(np.random.default_rng(0).integers(6, 100, (3, 12)))

    def flat_hidden(policy: Policy) -> mx.array:
        hidden = policy.hidden(tokens)
        return hidden.reshape(-1, hidden.shape[-1])

    def objective() -> mx.array:
        said = signal(
            flat_hidden(student),
            student.project,
            student.head_weights(),
            Full(flat_hidden(teacher), teacher.project),
            divergence,
            mx.ones(tokens.shape),
        )
        nothing = mx.zeros(tokens.shape)
        outputs = Outputs(logprobs_BT=nothing, entropy_BT=nothing, signal=said)
        batch = Batch(sampled_BT=nothing, weights={DIVERGENCE: mx.ones(tokens.shape)})
        return loss(outputs, batch, [TERM], {DIVERGENCE: denominators([12] * 3, 12)})[0]

    value, gradients = nn.value_and_grad(student.model, objective)()
    return float(np.array(value)), gradients


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text"])
def test_a_checkpoint_that_teaches_itself_learns_exactly_nothing(tmp_path, family):
    student, teacher = (loaded(tmp_path / name, family) for name in ("student", "teacher"))
    value, gradients = distil(student, teacher, Divergence(kind="jsd"))
    assert value == 0
    assert not any(np.array(g).any() for g in flat(gradients).values())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_student_comes_closer_to_a_larger_teacher(tmp_path, quantized):
    """Of another width, and with a vocabulary that is padded further."""
    student = loaded(tmp_path / "student", "qwen3", hidden_size=32, vocab_size=110)
    teacher = loaded(tmp_path / "teacher", "llama", quantized=quantized, seed=2)
    before, gradients = distil(student, teacher, Divergence(kind="reverse"))
    moved = {n: w - 0.3 * flat(gradients)[n] for n, w in student.trained().items()}
    student.load_trained(moved)
    after, _ = distil(student, teacher, Divergence(kind="reverse"))
    assert 0 < after < before


# ── the sampled-token estimate against the full divergence ───────────────────────────────────────

STATES, SAMPLES = 6, 4000


def estimate(coefficient: float | None = None):
    """Gradients of the true objective and of its estimate by sampled tokens, in states and head.

    Every state is a sequence of SAMPLES tokens; with a coefficient there is a task reward too.
    """
    keys = mx.random.split(mx.random.key(5), 5)
    hidden = mx.random.normal((STATES, D), key=keys[0])
    head = 0.5 * mx.random.normal((V, D), key=keys[1])
    teacher = Full(0.5 * mx.random.normal((STATES, V), key=keys[2]), lambda h: h)
    rewards = mx.random.normal((STATES, V), key=keys[3])

    def objective(hidden, head):
        reverse = per_token_plain(hidden, project, (head,), teacher, Divergence(kind="reverse"))
        if coefficient is None:
            return reverse.mean()
        expected = (mx.softmax(project(hidden, head), axis=-1) * rewards).sum(-1)
        return (coefficient * reverse - expected).mean()

    logits = mx.repeat(project(hidden, head), SAMPLES, axis=0)
    stream = np.full(STATES * SAMPLES, derive(0, "estimate"), np.uint64)
    with np.errstate(over="ignore"):
        numbers = uniform(stream, np.arange(STATES * SAMPLES, dtype=np.uint64))
    tokens, behaviour = sample(logits, mx.array(numbers), temperature=1.0)
    tokens, behaviour = tokens.reshape(STATES, SAMPLES), behaviour.reshape(STATES, SAMPLES)
    theirs = teacher.hidden_ND - mx.logsumexp(teacher.hidden_ND, axis=-1, keepdims=True)
    theirs = np.array(mx.take_along_axis(theirs, tokens, axis=-1))
    advantages = [per_token(t, s) for t, s in zip(theirs, np.array(behaviour))]
    if coefficient is not None:
        task = np.array(mx.take_along_axis(rewards, tokens, axis=-1))
        advantages = [combined(a, t, coefficient) for a, t in zip(task, advantages)]
    values, weights = (np.stack(column) for column in zip(*map(annotated, advantages)))
    batch = Batch(
        sampled_BT=mx.ones(tokens.shape),
        weights={PG: mx.array(weights)},
        advantages_BT=mx.array(values),
        behaviour_logprobs_BT=behaviour,
    )
    step = {PG: denominators([SAMPLES] * STATES, SAMPLES)}

    def surrogate(hidden, head):
        logprobs = project(hidden, head)
        logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(logprobs, tokens, axis=-1)
        outputs = Outputs(logprobs_BT=chosen, entropy_BT=mx.zeros(chosen.shape))
        return loss(outputs, batch, [PolicyGradient()], step)[0]

    return [
        np.concatenate([np.array(g).ravel() for g in mx.grad(f, argnums=(0, 1))(hidden, head)])
        for f in (objective, surrogate)
    ]


@pytest.mark.parametrize("coefficient", [None, 0.5])
def test_sampled_tokens_estimate_the_gradient_of_reverse_kl_without_bias(coefficient):
    true, found = estimate(coefficient)
    assert true @ found / np.linalg.norm(true) / np.linalg.norm(found) > 0.98
    assert np.linalg.norm(found) / np.linalg.norm(true) == pytest.approx(1, abs=0.05)
