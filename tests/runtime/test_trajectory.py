"""Trajectory batches are complete, ordered, shared without a copy; their digest covers all but durations."""

import pyarrow as pa
import pytest
from msgspec.structs import replace

from runtime.trajectory import (
    ANNOTATION,
    SCHEMA,
    UNLOGGED,
    VOLATILE,
    Span,
    StopReason,
    Trajectory,
    answer_positions,
    digest,
    lists,
    merge,
    spans_of,
    to_batch,
    to_rows,
    upgraded,
    with_columns,
)


def row(**changes) -> Trajectory:
    values = {
        "step": 3, "task": "addition", "prompt_index": 7, "sample": 1, "key": 2**64 - 1,
        "tokens": [4, 5, 6, 2], "sampled": [False, False, True, True],
        "logprobs": [0.0, 0.0, -0.5, -1.25], "weights_version": [-1, -1, 2, 2],
        "prompt_tokens": 2, "temperature": 0.5, "stop_reason": StopReason.STOP, "text": "ä6",
        "seconds": 0.25, "reward": 1.0, "passed": True, "reward_parts": '{"correct":1.0}',
        "failure": None, "advantage": 0.75, "dropped": None,
    }  # fmt: skip
    return Trajectory(**(values | changes))


def other(**changes) -> Trajectory:
    return row(
        sample=2, key=5, tokens=[4, 5, 9], sampled=[False, False, True], logprobs=[0.0, 0.0, -2.0],
        weights_version=[-1, -1, 3], stop_reason=StopReason.LENGTH, reward=None, passed=None,
        reward_parts=None, failure="raised", advantage=None, dropped="truncated", **changes,
    )  # fmt: skip


def test_rows_survive_the_batch_and_its_stream():
    rows = [row(), other(), row(sample=0, tokens=[1], sampled=[False], logprobs=[0.0],
                                weights_version=[-1], prompt_tokens=1)]  # fmt: skip
    batch = to_batch(rows, {"pippin.tokenizer": "abc"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pa.ipc.open_stream(sink.getvalue()) as reader:
        (read,) = list(reader)
    assert to_rows(read) == rows
    assert read.schema.metadata == {b"pippin.schema": b"2", b"pippin.tokenizer": b"abc"}
    assert {field.name for field in SCHEMA} == set(Trajectory.__struct_fields__)


def test_null_is_not_zero():
    batch = to_batch([other(), row(reward=0.0, passed=False, advantage=0.0)])
    for column in ("reward", "passed", "advantage"):
        assert batch[column].is_null().to_pylist() == [True, False]


@pytest.mark.parametrize("column", ["tokens", "sampled", "logprobs", "weights_version"])
def test_token_columns_need_one_length(column):
    with pytest.raises(ValueError, match=f"need one length, got .*'{column}': 3"):
        row(**{column: getattr(row(), column)[:3]})
    with pytest.raises(ValueError, match="need one length"):
        row(**{column: getattr(row(), column) * 2})
    with pytest.raises(ValueError, match="'teacher_logprobs': 3"):
        row(teacher_logprobs=[0.0, 0.0, -0.5])
    for name in ANNOTATION:
        with pytest.raises(ValueError, match=f"'{name}': 5"):
            row(**{name: [0.0] * 5})


@pytest.mark.parametrize("count", [0, -1, 5])
def test_the_prompt_is_part_of_the_tokens(count):
    with pytest.raises(ValueError, match=f"needs 1 to 4 tokens, got {count}"):
        row(prompt_tokens=count)


def test_merging_orders_by_step_prompt_and_sample():
    rows = [row(step=s, prompt_index=p, sample=n) for s in (1, 2) for p in (3, 20) for n in (0, 1)]
    forth = merge([to_batch(rows[:3]), to_batch(rows[3:])])
    back = merge([to_batch(rows[5:]), to_batch(rows[2:5][::-1]), to_batch(rows[:2])])
    assert to_rows(forth) == to_rows(back) == rows
    assert digest(forth) == digest(back)


def test_merging_refuses_the_same_trajectory_twice():
    with pytest.raises(ValueError, match="same prompt and sample"):
        merge([to_batch([row(), other()]), to_batch([row(key=1)])])


def test_merging_refuses_another_schema():
    batch = to_batch([row()])
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        merge([batch, batch.drop_columns(["text"])])


CHANGES = {
    "step": 4, "task": "sorting", "prompt_index": 8, "sample": 0, "key": 1,
    "tokens": [4, 5, 6, 3], "sampled": [False, True, True, True],
    "logprobs": [0.0, 0.0, -0.5, -1.2500001], "weights_version": [-1, -1, 2, 1],
    "prompt_tokens": 1, "temperature": 1.0, "stop_reason": StopReason.LENGTH, "text": "a6",
    "reward": 0.0, "passed": False, "reward_parts": None, "failure": "", "advantage": None,
    "dropped": "zero_variance", "seconds": 9.0, "author": "big", "teacher": "big",
    "teacher_logprobs": [0.0, 0.0, -0.5, -0.25], "teacher_ids": [], "teacher_id_logprobs": [-0.5],
    "teacher_tail": [-2.0], "spans": [Span("prompt", 0, 2), Span("answer", 2, 4)], "pair": 3,
    "preference": -1, **{name: [0.0, 0.0, 1.0, 0.5] for name in ANNOTATION},
}  # fmt: skip


def test_every_column_has_a_change_to_try():
    assert set(CHANGES) == {field.name for field in SCHEMA}
    assert {"seconds"} == VOLATILE


@pytest.mark.parametrize("column", sorted(set(CHANGES) - VOLATILE))
def test_a_change_of_any_column_changes_the_digest(column):
    rows = [row(), other()]
    changed = [replace(rows[0], **{column: CHANGES[column]}), rows[1]]
    assert digest(to_batch(changed)) != digest(to_batch(rows))


def test_seconds_are_not_part_of_the_digest():
    assert digest(to_batch([row(seconds=9.0)])) == digest(to_batch([row(seconds=0.1)]))


def test_the_digest_is_of_values_not_of_how_they_lie_in_memory():
    rows = [row(), other()]
    whole = to_batch([row(prompt_index=0), *rows, row(prompt_index=9)])
    assert digest(whole.slice(1, 2)) == digest(to_batch(rows))
    assert digest(to_batch(rows, {"note": "x"})) == digest(to_batch(rows))
    assert digest(to_batch(rows[::-1])) != digest(to_batch(rows))


def test_the_digest_sees_where_one_row_ends_and_the_next_begins():
    def of(lengths: list[int]) -> pa.RecordBatch:
        plain = [
            row(
                sample=i, prompt_tokens=1, tokens=[8] * n, sampled=[False] * n,
                logprobs=[0.0] * n, weights_version=[-1] * n,
            )
            for i, n in enumerate(lengths)
        ]  # fmt: skip
        return to_batch(plain)

    assert digest(of([3, 1])) != digest(of([2, 2]))


@pytest.mark.parametrize("column", ["tokens", "logprobs", "weights_version"])
def test_lists_are_views_of_the_batch_s_own_memory(column):
    batch = to_batch([row(), other(), row(sample=5)])
    buffer = batch.column(column).values.buffers()[1]
    views = lists(batch, column)
    for view in views:
        address = view.__array_interface__["data"][0]
        assert buffer.address <= address <= address + view.nbytes <= buffer.address + buffer.size
        assert not view.flags.owndata and not view.flags.writeable
    assert [view.tolist() for view in views] == batch[column].to_pylist()


def test_lists_of_a_slice_are_the_slice_s_rows():
    batch = to_batch([row(), other(), row(sample=5)]).slice(1, 1)
    for column in ("tokens", "sampled", "logprobs", "weights_version"):
        assert [view.tolist() for view in lists(batch, column)] == batch[column].to_pylist()


def test_replacing_columns_shares_the_others():
    batch = to_batch([row(), other()])
    changed = with_columns(batch, {"reward": [0.5, None], "stop_reason": [StopReason.DATA] * 2})
    assert changed["reward"].to_pylist() == [0.5, None]
    assert changed["stop_reason"].to_pylist() == ["data", "data"]
    assert batch["reward"].to_pylist() == [1.0, None]
    for mine, theirs in zip(changed["tokens"].buffers(), batch["tokens"].buffers()):
        assert (mine and mine.address) == (theirs and theirs.address)


# ── turns ────────────────────────────────────────────────────────────────────────────────────────

TURNS = [
    Span("prompt", 0, 2), Span("answer", 2, 4), Span("observation", 4, 7), Span("answer", 7, 8)
]  # fmt: skip


def episode(**changes) -> Trajectory:
    """A prompt, an answer, what an environment replied, and a last answer."""
    chosen = [False, False, True, True, False, False, False, True]
    values = {
        "tokens": [4, 5, 6, 2, 7, 8, 9, 2], "sampled": chosen, "spans": TURNS,
        "logprobs": [-0.5 * one for one in chosen], "weights_version": [2 * c - 1 for c in chosen],
    }  # fmt: skip
    return row(**(values | changes))


def of_data(**changes) -> Trajectory:
    unsampled = {"sampled": [False] * 8, "logprobs": [0.0] * 8, "weights_version": [-1] * 8}
    return episode(stop_reason=StopReason.DATA, **(unsampled | changes))


def test_turns_survive_the_batch_beside_rows_without_any():
    rows = [episode(), row(sample=2), of_data(sample=3)]
    assert to_rows(to_batch(rows)) == rows
    assert to_rows(merge([to_batch(rows[2:]), to_batch(rows[:2])])) == rows
    assert spans_of(rows[0]) == TURNS


def test_a_row_without_turns_has_those_of_its_prompt_and_answer():
    assert spans_of(row()) == [Span("prompt", 0, 2), Span("answer", 2, 4)]
    assert spans_of(row(prompt_tokens=4, sampled=[False] * 4)) == [Span("prompt", 0, 4)]


def test_observations_are_no_answers():
    rows = [episode(), of_data(sample=2), of_data(sample=3, spans=None), row(sample=4)]
    found = [positions.tolist() for positions in answer_positions(to_batch(rows))]
    assert found == [[2, 3, 7], [2, 3, 7], [2, 3, 4, 5, 6, 7], [2, 3]]
    assert [p.tolist() for p in answer_positions(to_batch(rows).slice(1, 1))] == [[2, 3, 7]]
    silent = of_data(spans=[Span("prompt", 0, 8)])
    assert answer_positions(to_batch([silent]))[0].tolist() == []


@pytest.mark.parametrize(
    "spans",
    [
        [],
        TURNS[:-1],
        TURNS[1:],
        [TURNS[0], *TURNS[2:]],
        [*TURNS, Span("answer", 8, 9)],
        [*TURNS[:3], Span("answer", 6, 8)],
        [*TURNS[:3], Span("observation", 7, 7), TURNS[3]],
        [TURNS[0], Span("answer", 2, 7), Span("answer", 5, 7), TURNS[3]],
        TURNS[::-1],
    ],
)
def test_turns_cover_a_row_without_gaps(spans):
    with pytest.raises(ValueError, match="spans need to cover 0 to 8 without gaps"):
        episode(spans=spans)


@pytest.mark.parametrize(
    "spans",
    [
        [Span("prompt", 0, 8)],
        [Span("prompt", 0, 3), Span("answer", 3, 8)],
        [Span("prompt", 0, 2), Span("answer", 2, 7), Span("observation", 7, 8)],
    ],
)
def test_what_the_policy_sampled_lies_in_its_answers(spans):
    with pytest.raises(ValueError, match="sampled tokens belong in an answer, got some in Span"):
        episode(spans=spans)


# ── earlier versions ─────────────────────────────────────────────────────────────────────────────

SINCE_2 = ("spans", "pair", "preference", *ANNOTATION)


DIGEST_1 = "03db2f7363ee78b771db7d200d288a15b84fb856a4e102df4f324ae1ce7dec9f"
"""What the code of version 1 gave for `row()` and `other()`: digests of logs and journals stay true."""


def of_version_1(*rows: Trajectory) -> pa.RecordBatch:
    """A batch as version 1 wrote it."""
    batch = to_batch(list(rows), {"pippin.tokenizer": "abc", "pippin.schema": "1"})
    return batch.drop_columns(list(SINCE_2))


def test_a_batch_of_version_1_is_read_as_one_without_turns_pairs_and_annotation():
    rows = [row(), other()]
    old = of_version_1(*rows)
    new = upgraded(old)
    assert new.schema.equals(SCHEMA)
    assert new.schema.metadata == {b"pippin.schema": b"2", b"pippin.tokenizer": b"abc"}
    assert all(new[name].null_count == 2 for name in SINCE_2)
    assert to_rows(new) == to_rows(old) == rows
    assert digest(new) == digest(old) == digest(to_batch(rows)) == DIGEST_1
    assert [p.tolist() for p in answer_positions(new)] == [[2, 3], [2]]


def test_a_batch_of_this_version_is_not_touched():
    batch = to_batch([row(), other()])
    assert upgraded(batch) is batch


def test_a_logged_batch_has_the_digest_of_its_own_columns():
    batch = to_batch([row(), other()])
    logged = batch.drop_columns(list(UNLOGGED))
    assert digest(upgraded(logged)) == digest(logged) == digest(batch)


def test_a_value_in_a_column_of_version_2_changes_the_digest():
    assert digest(to_batch([episode(spans=None)])) != digest(to_batch([episode()]))
