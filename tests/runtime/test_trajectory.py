"""The record: whole, ordered, shared without a copy, with a digest that sees everything but time."""

import pyarrow as pa
import pytest
from msgspec.structs import replace

from runtime.trajectory import (
    ANNOTATION,
    ANSWER,
    OBSERVATION,
    PROMPT,
    SCHEMA,
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
    for name in ("teacher_logprobs", *ANNOTATION):
        with pytest.raises(ValueError, match=f"'{name}': 3"):
            row(**{name: [0.0, 0.0, -0.5]})


@pytest.mark.parametrize("count", [0, -1, 5])
def test_the_prompt_is_part_of_the_tokens(count):
    with pytest.raises(ValueError, match=f"needs 1 to 4 tokens, got {count}"):
        row(prompt_tokens=count)


def test_merging_orders_by_step_prompt_and_sample_whoever_sampled():
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


TURNS = [Span(PROMPT, 0, 1), Span(OBSERVATION, 1, 2), Span(ANSWER, 2, 4)]
CHANGES = {
    "step": 4, "task": "sorting", "prompt_index": 8, "sample": 0, "key": 1,
    "tokens": [4, 5, 6, 3], "sampled": [False, True, True, True],
    "logprobs": [0.0, 0.0, -0.5, -1.2500001], "weights_version": [-1, -1, 2, 1],
    "prompt_tokens": 1, "temperature": 1.0, "stop_reason": StopReason.LENGTH, "text": "a6",
    "reward": 0.0, "passed": False, "reward_parts": None, "failure": "", "advantage": None,
    "dropped": "zero_variance", "seconds": 9.0, "author": "big", "teacher": "big",
    "teacher_logprobs": [0.0, 0.0, -0.5, -0.25], "teacher_ids": [], "teacher_id_logprobs": [-0.5],
    "teacher_tail": [-2.0], "spans": TURNS, "pair": 7, "preference": -1,
    **{name: [0.0, 0.0, 1.0, 0.5] for name in ANNOTATION},
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


# ── turns, and records of schema 1 ───────────────────────────────────────────────────────────────


def episode(**changes) -> Trajectory:
    """A prompt, an answer, what the environment replied, and an answer to that."""
    turns = [(PROMPT, 0, 2), (ANSWER, 2, 3), (OBSERVATION, 3, 5), (ANSWER, 5, 6)]
    values = {
        "tokens": [4, 5, 6, 7, 8, 2], "sampled": [False, False, True, False, False, True],
        "logprobs": [0.0, 0.0, -0.5, 0.0, 0.0, -1.0], "weights_version": [-1, -1, 2, -1, -1, 2],
        "spans": [Span(*turn) for turn in turns],
    }  # fmt: skip
    return row(**(values | changes))


def test_turns_survive_the_batch_and_are_a_prompt_and_an_answer_without_others():
    assert to_rows(to_batch([row(), episode(sample=2)])) == [row(), episode(sample=2)]
    assert spans_of(episode()) == episode().spans
    assert spans_of(row()) == [Span(PROMPT, 0, 2), Span(ANSWER, 2, 4)]
    assert spans_of(row(prompt_tokens=4, sampled=[False] * 4)) == [Span(PROMPT, 0, 4)]


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([Span(PROMPT, 0, 2), Span(ANSWER, 3, 4)], "cover 0 to 4 without gaps"),
        ([Span(PROMPT, 0, 2), Span(ANSWER, 2, 3)], "cover 0 to 4 without gaps"),
        ([Span(PROMPT, 0, 2), Span(ANSWER, 2, 2), Span(ANSWER, 2, 4)], "cover 0 to 4"),
        ([], "cover 0 to 4"),
        ([Span(PROMPT, 0, 3), Span(ANSWER, 3, 4)], "sampled tokens belong in an answer"),
        ([Span(PROMPT, 0, 2), Span(OBSERVATION, 2, 4)], "sampled tokens belong in an answer"),
    ],
)
def test_turns_cover_the_row_and_only_answers_are_sampled(spans, words):
    with pytest.raises(ValueError, match=words):
        row(spans=spans)


def test_a_loss_looks_at_what_was_sampled_or_at_the_data_s_answers():
    data = {"stop_reason": StopReason.DATA, "sampled": [False] * 6}
    rows = [episode(), episode(sample=2, **data), episode(sample=3, **data, spans=None)]
    found = [positions.tolist() for positions in answer_positions(to_batch(rows))]
    assert found == [[2, 5], [2, 5], [2, 3, 4, 5]]


def test_a_record_of_schema_1_is_read_as_one_without_what_came_since():
    rows, since = [row(), other()], ["spans", "pair", "preference", *ANNOTATION]
    old = to_batch(rows).drop_columns(since).replace_schema_metadata({"pippin.schema": "1"})
    assert to_rows(old) == rows
    new = upgraded(old)
    assert (new.schema.names, new.schema.metadata) == (SCHEMA.names, SCHEMA.metadata)
    assert digest(new) == digest(old) == digest(to_batch(rows))
    assert upgraded(new) is new
