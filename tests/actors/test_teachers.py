"""Teachers that are several, of other tokens, behind an endpoint, silent, or wrong: counted and named."""

import json
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from actors.pool import actors_of
from policies.random_checkpoint import create_checkpoint
from runtime.errors import BadInput, RunFailed
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import Status
from runtime.trajectory import to_rows
from runtime.trajectory_log import batches
from tests.actors.tiny import SHAPE, checkpoint, distilled, go, new_run, teacher
from tests.runtime.test_endpoint import Behaviour, completion, reply, serving

TEXT = {
    "algorithm__learn_from": {"name": "teacher"},
    "algorithm__signal": {"name": "text"},
    "eval": {"prompts": 0},
    "task__response": "",
}
TOP_K = {"algorithm__signal": {"name": "top_k", "k": 8}}
SAMPLED = {"algorithm__signal": {"name": "sampled"}}
STUDENTS_END = 2
"""The one stop token of the tiny checkpoints."""


def run_of(folder: Path, name: str = "run", **changes: Any) -> tuple[RunDirectory, Status]:
    run = new_run(folder, name)
    wanted = distilled(folder, **changes)
    return run, go(wanted, run)


def rows_of(run: RunDirectory) -> list:
    return [row for batch in batches(run.trajectories) for row in to_rows(batch)]


def broken(folder: Path) -> Path:
    """A teacher whose last norm is NaN."""
    path = folder / "broken"
    create_checkpoint(path, SHAPE, seed=3)
    (path / "tokenizer.json").write_bytes((teacher(folder) / "tokenizer.json").read_bytes())
    for file in ("tokenizer_config.json", "generation_config.json"):
        if (teacher(folder) / file).exists():
            (path / file).write_bytes((teacher(folder) / file).read_bytes())
    weights = mx.load(str(path / "model.safetensors"))
    assert isinstance(weights, dict)
    name = "model.norm.weight"
    weights[name] = mx.full(weights[name].shape, mx.nan)
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    return path


# ── endpoints ────────────────────────────────────────────────────────────────────────────────────


def endpoint_run(
    folder: Path, behaviour: Behaviour, name: str = "run", **changes: Any
) -> tuple[RunDirectory, Status, list[dict]]:
    with serving(behaviour) as server:
        api = {"name": "endpoint", "url": server.url, "model": "m", "attempts": 1, "timeout_s": 2.0}
        tables = TEXT | {"algorithm__teachers": {"api": api | changes.pop("api", {})}} | changes
        run, status = run_of(folder, name, **tables)
        return run, status, server.requests


def fine(handler, request, number):
    reply(handler, completion(f"{len(request['messages'][-1]['content'])}."))


def test_an_endpoints_text_is_learned_from(tmp_path):
    run, status, requests = endpoint_run(tmp_path, fine)
    assert status.ledger["trained"] == 32 and status.ledger["dropped"] == {}
    assert len(requests) == 32
    for row in rows_of(run):
        assert (row.author, row.teacher, row.text[-1]) == ("api", "api", ".")
        assert row.tokens[-1] == 2 and not any(row.sampled)
    assert all(line["cross_entropy"] > 0 for line in run.read_lines("metrics.jsonl"))


def test_a_run_that_is_paused_and_resumed_asks_for_each_text_once(tmp_path):
    with serving(fine) as server:
        api = {"name": "endpoint", "url": server.url, "model": "m"}
        wanted = distilled(tmp_path, **TEXT, algorithm__teachers={"api": api})
        run = new_run(tmp_path)
        assert go(wanted, run, stop_after=2).state == "paused"
        assert go(wanted, run).state == "finished"
        other = new_run(tmp_path, "other")
        assert go(wanted, other).state == "finished"
        asked = [json.dumps(request["messages"]) for request in server.requests]
        assert len(asked) == len(set(asked)) == 32
    assert run.read_status().trajectories_digest == other.read_status().trajectories_digest


def test_a_pause_waits_for_what_is_under_way_and_keeps_it(tmp_path):
    run = new_run(tmp_path)

    def slow(handler, request, number):
        if number == 3:
            run.ask_to_pause(PauseRequest(by="user", reason="a test"))
        time.sleep(0.2)
        fine(handler, request, number)

    with serving(slow) as server:
        api = {"name": "endpoint", "url": server.url, "model": "m", "concurrency": 2}
        wanted = distilled(
            tmp_path, **TEXT, algorithm__teachers={"api": api}, algorithm__cache_gb=0
        )
        assert go(wanted, run).state == "paused"
        begun = len(server.requests)
        assert 4 <= begun < 8
        assert go(wanted, run).state == "finished"
        assert len(server.requests) == 32  # none of the first was asked for again
    assert run.read_status().ledger["trained"] == 32


def sometimes(bad: Behaviour) -> Behaviour:
    def behave(handler, request, number):
        (bad if number % 4 == 1 else fine)(handler, request, number)

    return behave


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda h, r, n: reply(h, b'{"error": "busy"}', 429), "teacher_rate_limited"),
        (lambda h, r, n: reply(h, b"oh no", 500), "teacher_server_error"),
        (lambda h, r, n: reply(h, b"{not json"), "teacher_malformed"),
        (lambda h, r, n: reply(h, completion("")), "teacher_empty"),
        (lambda h, r, n: reply(h, completion("  \n ")), "teacher_empty"),
        (lambda h, r, n: reply(h, completion("1" * 1_000_000)), "too_long"),
        (lambda h, r, n: reply(h, completion("1" * 5_000_000)), "teacher_too_long"),
        (lambda h, r, n: time.sleep(3), "teacher_timed_out"),
    ],
    ids=["busy", "error", "malformed", "empty", "blank", "million", "millions", "slow"],
)
def test_what_goes_wrong_at_an_endpoint_is_counted_by_name(tmp_path, bad, reason):
    api = {"concurrency": 8, "timeout_s": 1.0 if reason == "teacher_timed_out" else 5.0}
    run, status, _ = endpoint_run(tmp_path, sometimes(bad), algorithm__steps=1, api=api)
    ledger = status.ledger
    assert ledger["dropped"] == {reason: 2} and ledger["trained"] == 6
    assert ledger["pulled"] == 8 and ledger["in_flight"] == 0
    assert sum(row.dropped == reason for row in rows_of(run)) == 2


def test_an_answer_of_one_token_is_learned_from_and_counted(tmp_path):
    short = sometimes(lambda h, r, n: reply(h, completion("7")))
    run, status, _ = endpoint_run(tmp_path, short, algorithm__steps=1)
    assert status.ledger["trained"] == 8
    assert run.read_lines("metrics.jsonl")[0]["one_token_answers"] == 2


def test_an_endpoint_that_is_down_ends_the_run_with_its_reason(tmp_path):
    with serving(fine) as server:
        url = server.url
    api = {"name": "endpoint", "url": url, "model": "m", "attempts": 1}
    with pytest.raises(
        RunFailed, match=r"nothing usable for any row of step 1.*api: teacher_refused"
    ):
        run_of(tmp_path, **TEXT, algorithm__teachers={"api": api})


# ── teachers that are wrong ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("changes", [{}, TOP_K, SAMPLED], ids=["full", "top-k", "sampled"])
def test_a_checkpoint_of_nan_is_no_teacher(tmp_path, changes):
    big = {"name": "local", "path": str(broken(tmp_path))}
    with pytest.raises(BadInput, match="broken: its weights give NaN"):
        run_of(tmp_path, algorithm__teachers={"big": big}, **changes)


@pytest.mark.parametrize("changes", [TOP_K, SAMPLED], ids=["top-k", "sampled"])
def test_a_teacher_that_says_nothing_but_nan_ends_the_run(tmp_path, monkeypatch, changes):
    from policies.frozen import Frozen

    known = Frozen._hidden
    monkeypatch.setattr(
        Frozen,
        "_hidden",
        lambda self, micro: (known(self, micro)[0], known(self, micro)[1] & False),
    )
    with pytest.raises(
        RunFailed, match=r"any row of step 1; the first: teacher big: teacher_unusable"
    ):
        run_of(tmp_path, **changes)


def test_a_hosted_teacher_of_nothing_but_nan_changes_no_weights(tmp_path, monkeypatch):
    from policies.frozen import Frozen

    whole = Frozen.full

    def silent(self, micro):
        said = whole(self, micro)
        return type(said)(said.hidden_ND * mx.nan, said.project)

    monkeypatch.setattr(Frozen, "full", silent)
    with pytest.raises(RunFailed, match=r"gave no usable distribution for any of .* tokens"):
        run_of(tmp_path)


@pytest.mark.parametrize("changes", [{}, TOP_K, SAMPLED], ids=["full", "top-k", "sampled"])
def test_tokens_of_which_nothing_usable_is_said_are_counted_and_not_trained_on(
    tmp_path, monkeypatch, changes
):
    from policies.frozen import Frozen

    known = Frozen._hidden

    def half(self, micro):
        hidden_ND, known_N = known(self, micro)
        return hidden_ND, known_N & (mx.arange(len(known_N)) % 2 == 0)

    monkeypatch.setattr(Frozen, "_hidden", half)
    run, status = run_of(tmp_path, algorithm__steps=2, **changes)
    assert status.state == "finished"
    for line in run.read_lines("metrics.jsonl"):
        assert 0 < line["unusable_tokens"] < line["trained_tokens"]
        assert line["grad_norm"] > 0


# ── several teachers, other vocabularies ─────────────────────────────────────────────────────────


def two(folder: Path) -> dict[str, Any]:
    """A row's parity says whose it is: the sharp teacher's, or the student's own copy's."""
    lines = [
        json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1), "whose": "ba"[i % 2]})
        for i in range(40)
    ]
    (folder / "whose.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "task": {
            "name": "jsonl", "train": str(folder / "whose.jsonl"), "response": "answer",
            "teacher": "whose",
        },
        "algorithm__teachers": {
            "a": {"name": "local", "path": str(teacher(folder))},
            "b": {"name": "local", "path": str(checkpoint(folder / "model"))},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{}, TOP_K, SAMPLED, TEXT], ids=["full", "top-k", "sampled", "text"]
)
def test_each_row_is_its_own_teachers(tmp_path, changes):
    tables = two(tmp_path)
    changes = {k: v for k, v in changes.items() if not k.startswith("task") and k != "eval"}
    run, status = run_of(tmp_path, **tables, **changes)
    assert status.ledger["trained"] == 32
    rows = rows_of(run)
    assert {row.teacher for row in rows} == {"a", "b"}
    for row in rows:
        if changes == SAMPLED:
            assert row.teacher_logprobs is not None
            same = row.teacher_logprobs == pytest.approx(row.logprobs, abs=1e-5)
            assert same == (row.teacher == "b" and row.step == 1) or row.step > 1
        if changes == TEXT:
            assert row.author == row.teacher
    assert all(row.teacher_ids is None for row in rows)  # not in the log


def test_a_row_whose_teacher_there_is_not_is_named(tmp_path):
    tables = two(tmp_path)
    tables["algorithm__teachers"] = {"a": tables["algorithm__teachers"]["a"],
                                     "c": tables["algorithm__teachers"]["b"]}  # fmt: skip
    with pytest.raises(
        BadInput, match=r"whose.jsonl, line \d+: needs a teacher of .*\(a, c\), got 'b'"
    ):
        run_of(tmp_path, **tables)


def test_an_answer_ends_as_the_student_ends_it_however_its_teacher_does(tmp_path):
    ends = list(range(3, 60))  # so that no answer is long
    path = teacher(tmp_path) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": ends}))
    run, _ = run_of(tmp_path, **TEXT)
    learned = [row for row in rows_of(run) if not row.dropped]
    ended = [row for row in learned if row.tokens[-1] == STUDENTS_END]
    assert len(ended) > len(learned) / 2
    assert not any(set(row.tokens[-1:]) & set(ends) for row in ended)


@pytest.mark.parametrize("vocabulary", [104, 120])
@pytest.mark.parametrize("changes", [{}, TOP_K, SAMPLED], ids=["full", "top-k", "sampled"])
def test_vocabularies_of_two_sizes_are_no_hindrance(tmp_path, vocabulary, changes):
    checkpoint(tmp_path / "student", vocab_size=112)
    checkpoint(tmp_path / "other", vocab_size=vocabulary, hidden_size=64)
    big = {"name": "local", "path": str(tmp_path / "other")}
    model = {"path": str(tmp_path / "student")}
    run, status = run_of(tmp_path, model=model, algorithm__teachers={"big": big}, **changes)
    assert status.state == "finished"
    lines = run.read_lines("metrics.jsonl")
    assert all(line["grad_norm"] > 0 and "divergence" in line for line in lines)
    # Ids that only the student has: what comes behind one, the teacher cannot know.
    unusable = sum(line["unusable_tokens"] for line in lines)
    sampled = [token for row in rows_of(run) for token in row.tokens]
    assert (unusable > 0) == (vocabulary == 104 or changes == TOP_K) or max(sampled) < vocabulary


def test_the_actors_of_a_run_are_those_that_it_needs(tmp_path):
    def roles(**changes: Any) -> set[str]:
        return {actor.role for actor in actors_of(distilled(tmp_path, **changes))}

    assert "teacher" not in roles() and "teacher" in roles(**TOP_K)
    assert roles(**TEXT) == {"learner", "teacher"}
