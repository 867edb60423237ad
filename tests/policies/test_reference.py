"""The reference scores each row of data once: in later epochs, in evaluations, in whatever micro-batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from configs.schema import Settings
from policies.batch import MicroBatch, Row, pack
from policies.load import load_policy
from policies.policy import Policy
from policies.reference import ENTRY_BYTES, ReferenceLogprobs
from policies.rows import from_preferences
from policies.update import Updater
from policies.weights import digest
from runtime.tasks.prompt import Prompt
from runtime.trajectory import to_batch
from tests.policies.checkpoints import write

TRAINED = {"full": {"name": "full"}, "lora": {"name": "lora", "rank": 2}}


def row(*tokens: int, prompt: int = 1) -> Row:
    return Row(np.array(tokens, np.int32), np.arange(prompt, len(tokens)), {})


class Score:
    """Says of each target its token plus 1/2, and counts the rows that it is asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, micro: MicroBatch) -> mx.array:
        self.rows += micro.tokens_BT.shape[0]
        return micro.targets_BR + 0.5


def asked(kept: ReferenceLogprobs, *rows: Row) -> list[list[float]]:
    (micro,) = pack(list(rows), 10_000)
    found = np.array(kept.of(micro))
    return [found[micro.rows.index(i), : len(r.positions)].tolist() for i, r in enumerate(rows)]


def test_a_row_is_scored_once_whatever_stands_beside_it():
    score = Score()
    kept = ReferenceLogprobs(score)
    long = row(*range(1, 40))
    assert asked(kept, row(3, 4, 5), row(3, 6)) == [[4.5, 5.5], [6.5]]
    assert score.rows == 2
    assert asked(kept, row(3, 6), long, row(3, 4, 5))[0] == [6.5]
    assert score.rows == 3
    assert asked(kept, long, row(3, 4, 5))[1] == [4.5, 5.5]
    assert score.rows == 3


def test_rows_differ_by_tokens_and_by_targets():
    score = Score()
    kept = ReferenceLogprobs(score)
    others = [row(3, 4, 5), row(3, 4, 6), row(3, 4, 5, prompt=2), row(3, 4), row(3, 4, 5, 0)]
    found = asked(kept, *others)
    assert score.rows == len(others)
    assert found == [[4.5, 5.5], [4.5, 6.5], [5.5], [4.5], [4.5, 5.5, 0.5]]


def test_no_more_is_kept_than_there_is_room_for():
    score = Score()
    kept = ReferenceLogprobs(score, limit_bytes=ENTRY_BYTES + 8)
    for _ in range(3):
        assert asked(kept, row(3, 4, 5), row(3, 6, 7)) == [[4.5, 5.5], [6.5, 7.5]]
    assert score.rows == 2 + 1 + 1


def settings(folder: Path, train: str, loss: str, **more) -> Settings:
    raw = {
        "task": {"name": "addition", "digits": 1},
        "model": {"path": str(folder), "train": TRAINED[train]},
        "algorithm": {"name": "preference", "loss": {"name": loss}, **more},
        "sampling": {"max_new_tokens": 6},
        "optimizer": {"learning_rate": 1e-2},
    }
    return msgspec.convert(raw, Settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "model"
    write(folder, "qwen3", hidden_size=32, num_hidden_layers=1, intermediate_size=32)
    return folder


def pairs(policy: Policy, count: int, paired: bool = True):
    prompts = [
        Prompt(
            task="addition", index=i, messages=[{"role": "user", "content": f"{i}+1="}],
            demonstration=str(i + 1), rejected=str(i * i + 3),
        )
        for i in range(count)
    ]  # fmt: skip
    return to_batch(from_preferences(policy.tokenizer, prompts, step=1, limit=64, paired=paired))


@contextmanager
def forward_passes(policy: Policy, monkeypatch) -> Iterator[dict[str, int]]:
    """Counts the rows of which the reference computes hidden states, and those of the policy."""
    counts, inside = {"reference": 0, "policy": 0}, [False]
    whole, hidden = policy.reference, policy.hidden

    @contextmanager
    def reference() -> Iterator[None]:
        with whole():
            inside[0] = True
            yield
            inside[0] = False

    def counted(tokens_BT: mx.array, *rest) -> mx.array:
        counts["reference" if inside[0] else "policy"] += tokens_BT.shape[0]
        return hidden(tokens_BT, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(policy, "reference", reference)
        patch.setattr(policy, "hidden", counted)
        yield counts


@pytest.mark.parametrize(("train", "loss"), [("full", "dpo"), ("lora", "dpo"), ("lora", "kto")])
def test_a_second_epoch_and_an_evaluation_do_not_compute_the_reference_again(
    folder, train, loss, monkeypatch
):
    wanted = settings(folder, train, loss)
    policy = load_policy(wanted.model, folder, seed=0)
    updater = Updater(policy, wanted)
    batch = updater.annotated(pairs(policy, 4, paired=loss != "kto"))
    with forward_passes(policy, monkeypatch) as counts:
        updater.step(batch)
        assert counts["reference"] == batch.num_rows
        for _ in range(2):
            updater.step(batch)
            rewards = updater.implied_rewards(batch)
    assert counts["reference"] == batch.num_rows
    assert counts["policy"] >= 5 * batch.num_rows
    assert np.abs(rewards).max() > 0, "the policy has moved away from the reference"


def test_answers_of_the_policy_are_not_kept(folder, monkeypatch):
    wanted = settings(folder, "full", "dpo", learn_from={"name": "policy"})
    policy = load_policy(wanted.model, folder, seed=0)
    updater = Updater(policy, wanted)
    batch = updater.annotated(pairs(policy, 4))
    with forward_passes(policy, monkeypatch) as counts:
        updater.step(batch)
        updater.step(batch)
    assert counts["reference"] == 2 * batch.num_rows


@pytest.mark.parametrize("train", TRAINED)
def test_what_is_kept_trains_as_what_is_computed_anew(folder, train, monkeypatch):
    """Each micro-batch is the same as before, so that this holds outside exact mode too."""
    ends = []
    for keeps in (True, False):
        wanted = settings(folder, train, "dpo")
        policy = load_policy(wanted.model, folder, seed=0)
        updater = Updater(policy, wanted)
        if not keeps:
            monkeypatch.setattr(updater, "_kept", None)
        for _ in range(3):
            updater.step(updater.annotated(pairs(policy, 4)))
        ends.append(digest(policy.trained()))
    assert ends[0] == ends[1]
