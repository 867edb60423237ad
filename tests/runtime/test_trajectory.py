"""Trajectory batches are complete, ordered, shared without a copy; their digest covers all but durations."""

import pyarrow as pa
import pytest
from msgspec.structs import replace

from runtime.trajectory import (
    SCHEMA,
    VOLATILE,
    StopReason,
    Trajectory,
    digest,
    lists,
    merge,
    to_batch,
    to_rows,
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
    assert read.schema.metadata == {b"pippin.schema": b"1", b"pippin.tokenizer": b"abc"}
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
    "teacher_tail": [-2.0],
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
