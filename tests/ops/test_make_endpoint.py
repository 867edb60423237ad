"""An endpoint may be fine, busy, down, broken, silent or endless: rows are right, its key is not written."""

import json
import threading
import time
from collections import Counter

import pytest

from ops.make import endpoint as remote_teacher
from ops.make.store import journal_path
from policies.generators import endpoint as generators
from runtime.errors import BadInput, Interrupted, RunFailed
from tests.ops.making import command, made, recipe, remote, rows, settings, timeless
from tests.runtime.test_endpoint import CANARY, VARIABLE, completion, reply, serving


def question(request: dict) -> str:
    return request["messages"][-1]["content"]


def right(request: dict) -> str:
    a, b = question(request).rstrip("=").split("+")
    return str(int(a) + int(b))


def answer(handler, request: dict, number: int) -> None:
    """Answers right every second time."""
    reply(handler, completion(right(request) if request["seed"] % 2 else "no"))


def quick(monkeypatch) -> None:
    """Makes retries wait for 50 ms at most."""
    real = generators.Endpoint
    monkeypatch.setattr(generators, "Endpoint",
                        lambda **s: real(first_wait_s=0.01, longest_wait_s=0.05, **s))  # fmt: skip


def test_right_answers_become_rows_in_the_order_of_the_prompts(tmp_path):
    out = tmp_path / "rows.jsonl"
    with serving(answer) as server:
        done = made(remote(tmp_path, server.url), out)
    found = rows(out)
    assert done.account.asked == 12 == done.account.kept + done.account.rejected["wrong"]
    assert done.account.rows == len(found) > 1
    assert [r["made"]["prompt_index"] for r in found] == sorted(
        r["made"]["prompt_index"] for r in found
    )
    for row in found:
        a, b = row["prompt"].rstrip("=").split("+")
        assert row["response"] == str(int(a) + int(b))
    story = found[0]["made"]
    assert story["teacher"] == {"name": "endpoint", "url": server.url, "model": "big"}
    assert (story["answered_by"], story["tokens"], story["stop"]) == ("m", 2, "stop")
    assert {r["seed"] for r in server.requests} != {server.requests[0]["seed"]}


def test_the_server_s_reasoning_is_kept_with_a_trace(tmp_path):
    def thinks(handler, request, number):
        message = {"content": right(request), "reasoning_content": "I count."}
        reply(handler, completion(None, choices=[{"message": message, "finish_reason": "stop"}]))

    method = {"name": "traces", "prompts": 3, "only_right": True, "require_reasoning": True}
    with serving(thinks) as server:
        made(remote(tmp_path, server.url, method=method), tmp_path / "rows.jsonl")
    assert rows(tmp_path / "rows.jsonl")[0]["response"].startswith(
        "<think>\nI count.\n</think>\n\n"
    )


def test_a_system_message_and_the_instruction_are_the_teacher_s_alone(tmp_path):
    def steps(handler, request, number):
        sums = question(request).partition("\n")[0].rstrip("=").split("+")
        reply(handler, completion(f"I add.\nAnswer: {sum(map(int, sums))}"))

    method = {"name": "step_by_step", "prompts": 2}
    with serving(steps) as server:
        who = {"name": "endpoint", "url": server.url, "model": "big", "system": "be exact"}
        done = made(
            remote(tmp_path, server.url, method=method, teacher=who), tmp_path / "rows.jsonl"
        )
    assert (done.account.kept, done.account.rows) == (2, 4)
    assert server.requests[0]["messages"][0] == {"role": "system", "content": "be exact"}
    assert "step by step" in question(server.requests[0])
    for row in rows(tmp_path / "rows.jsonl"):
        assert row["prompt"] in (f"[{row['part']}] {row['prompt'].partition('] ')[2]}",)
        assert "step by step" not in row["prompt"] and "exact" not in row["prompt"]


# ── every failure by its name ────────────────────────────────────────────────────────────────────


def sometimes(bad) -> object:
    """Behaves badly for prompts whose sum is even."""

    def behaviour(handler, request, number):
        if int(right(request)) % 2 == 0:
            bad(handler, request, number)
        else:
            reply(handler, completion(right(request)))

    return behaviour


def slow(handler, request, number) -> None:
    time.sleep(3)


@pytest.mark.parametrize(("bad", "kind"), [
    (lambda h, r, n: reply(h, b"{not json"), "malformed"),
    (lambda h, r, n: reply(h, b""), "malformed"),
    (lambda h, r, n: reply(h, b'{"choices":[]}'), "malformed"),
    (lambda h, r, n: reply(h, completion(None)), "empty"),
    (lambda h, r, n: reply(h, completion("  \n")), "empty"),
    (lambda h, r, n: reply(h, b"busy", status=429, Retry_After="0"), "rate_limited"),
    (lambda h, r, n: reply(h, b"", status=500), "server_error"),
    (lambda h, r, n: reply(h, b"", status=400), "rejected"),
    (lambda h, r, n: reply(h, completion("a " * 3_000_000)), "too_long"),
    (lambda h, r, n: h.connection.close(), "dropped"),
    (slow, "timed_out"),
])  # fmt: skip
def test_a_failure_is_counted_by_its_kind_and_the_others_are_kept(tmp_path, monkeypatch, bad, kind):
    quick(monkeypatch)
    method = {"name": "rejection", "prompts": 8, "samples": 1}
    with serving(sometimes(bad)) as server:
        patience = {"timeout_s": 1.0 if bad is slow else 20.0, "attempts": 1, "concurrency": 8}
        who = {"name": "endpoint", "url": server.url, "model": "m"} | patience
        done = made(
            remote(tmp_path, server.url, method=method, teacher=who), tmp_path / "rows.jsonl"
        )
    assert done.account.adds_up and done.account.failed.keys() == {kind}
    assert 0 < done.account.failed[kind] < 8 and done.account.kept == 8 - done.account.failed[kind]


@pytest.mark.parametrize(("text", "finish", "reason"), [
    ("7 " * 1_000_000, "stop", "too_long"),
    ("12", "length", "truncated"),
    ("12", "content_filter", "filtered"),
])  # fmt: skip
def test_an_unusable_answer_is_counted_as_rejected_with_its_reason(tmp_path, text, finish, reason):
    body = completion(None, choices=[{"message": {"content": text}, "finish_reason": finish}])
    with serving(sometimes(lambda h, r, n: reply(h, body))) as server:
        done = made(remote(tmp_path, server.url), tmp_path / "rows.jsonl")
    assert done.account.rejected[reason] > 0 and done.account.kept > 0


def test_an_endpoint_that_is_down_is_named_and_the_same_command_goes_on(tmp_path, monkeypatch):
    quick(monkeypatch)
    out, down = tmp_path / "rows.jsonl", threading.Event()

    def until_down(handler, request, number):
        if number >= 5 and not down.is_set():
            reply(handler, b"out of memory", status=500)
        else:
            reply(handler, completion(right(request)))

    with serving(until_down) as server:
        todo = remote(tmp_path, server.url, max_failures=3)
        with pytest.raises(
            RunFailed, match=r"3 times in a row .* server_error.*same command goes on"
        ):
            made(todo, out)
        assert not out.exists()
        down.set()
        before = len(server.requests)
        done = made(todo, out)
        assert len(server.requests) - before == 12 - 5 and done.account.kept == 12


def test_answers_under_way_when_an_endpoint_fails_are_kept(tmp_path):
    out, down = tmp_path / "rows.jsonl", threading.Event()
    down.set()

    def one_is_slow(handler, request, number):
        if number and down.is_set():
            reply(handler, b"out of memory", status=500)
            return
        time.sleep(1.0 if down.is_set() else 0.0)
        reply(handler, completion(right(request)))

    with serving(one_is_slow) as server:
        todo = remote(tmp_path, server.url, max_failures=3)
        with pytest.raises(RunFailed, match="3 times in a row"):
            made(todo, out)
        before = len(server.requests)
        assert before <= 7  # nothing new was asked when it had failed
        down.clear()
        assert made(todo, out).account.kept == 12
        assert len(server.requests) - before == 12 - 1


def test_only_passing_failures_are_asked_again(tmp_path, monkeypatch):
    quick(monkeypatch)
    out, busy = tmp_path / "rows.jsonl", threading.Event()
    busy.set()

    def behaviour(handler, request, number):
        total = int(right(request))
        if total % 3 == 0:
            reply(handler, b"no", status=400)
        elif total % 3 == 1 and busy.is_set():
            reply(handler, b"busy", status=503)
        else:
            reply(handler, completion(str(total)))

    with serving(behaviour) as server:
        todo = remote(tmp_path, server.url)
        first = made(todo, out)
        assert first.passing == {"server_error": first.account.failed["server_error"]}
        assert made(todo, out).account == first.account  # it is there: nothing is asked
        busy.clear()
        out.unlink()
        asked = len(server.requests)
        second = made(todo, out)
        assert len(server.requests) - asked == first.passing["server_error"]
    assert second.account.failed == {"rejected": first.account.failed["rejected"]}
    assert second.account.kept == first.account.kept + first.passing["server_error"]


def test_a_server_that_refuses_each_request_is_not_asked_further(tmp_path):
    with serving(lambda h, r, n: reply(h, b"who are you", status=401)) as server:
        with pytest.raises(
            RunFailed, match=r"does not take requests without a key \(key_variable\)"
        ):
            made(remote(tmp_path, server.url), tmp_path / "rows.jsonl")
        assert len(server.requests) <= 5


@pytest.mark.parametrize(("url", "said"), [
    ("ftp://x", "needed an http or https URL"),
    ("http://me:word@127.0.0.1:1/v1", "without a user or password"),
])  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path, url, said):
    with pytest.raises(BadInput, match=said) as caught:
        made(remote(tmp_path, url), tmp_path / "rows.jsonl")
    assert "word" not in str(caught.value).replace("password", "")
    assert list(tmp_path.glob("rows*")) == []


# ── the key ──────────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_in_no_file_and_in_no_output_whatever_the_server_answers(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv(VARIABLE, CANARY)
    spy = tmp_path / "reward.py"  # a user's function that looks around
    spy.write_text(
        "import json, os\n"
        "def reward(prompt, completion, row):\n"
        f"    open({str(tmp_path / 'spied.json')!r}, 'w').write(json.dumps(dict(os.environ)))\n"
        "    return 1.0\n"
    )
    data = tmp_path / "prompts.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"{i}+{i}="}) for i in range(20)))

    def echo(handler, request, number):
        key = handler.headers["Authorization"]
        assert key == f"Bearer {CANARY}"
        if number % 4 == 0:
            reply(handler, json.dumps({"error": {"message": f"bad {key}"}}).encode(), status=400)
        elif number % 4 == 1:
            message = {"content": f"{number} {key}", "reasoning": key}
            choice = [{"message": message, "finish_reason": key}]
            reply(handler, completion(None, choices=choice, model=key))
        else:
            reply(handler, completion(f"{number} said {key}"))

    task = {"name": "jsonl", "train": str(data), "reward": str(spy)}
    with serving(echo) as server:
        who = {
            "name": "endpoint",
            "url": server.url,
            "model": "m",
            "attempts": 1,
            "key_variable": VARIABLE,
        }
        todo = remote(tmp_path, server.url, teacher=who, task=task, method={"name": "rejection"})
        done = made(todo, tmp_path / "rows.jsonl")
        process = command(recipe(tmp_path, todo), tmp_path / "more.jsonl")
        said = process.communicate(timeout=120)
    assert process.returncode == 0 and done.account.kept > 5
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"rows.jsonl", "rows.jsonl.journal", "more.jsonl", "spied.json"} <= {
        f.name for f in files
    }
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in "".join([*said, *capfd.readouterr()])
    assert "[key]" in (tmp_path / "rows.jsonl").read_text()


def test_a_key_that_is_not_there_is_refused_at_once(tmp_path):
    who = {
        "name": "endpoint",
        "url": "http://127.0.0.1:9/v1",
        "model": "m",
        "key_variable": "PIPPIN_NO_SUCH_KEY",
    }
    with pytest.raises(BadInput, match=r"needed a key in \$PIPPIN_NO_SUCH_KEY, got none"):
        made(remote(tmp_path, "", teacher=who), tmp_path / "rows.jsonl")
    assert list(tmp_path.glob("rows*")) == []


# ── stopped and killed ───────────────────────────────────────────────────────────────────────────


def test_ctrl_c_keeps_the_answers_that_came_and_asks_for_none_twice(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    asked: Counter[int] = Counter()
    real = remote_teacher.Remote._settle

    def settle(self, made, desk):
        real(self, made, desk)
        if len(desk.store.answers) == 4:
            desk.stop.asked = True  # as the first signal does

    def behaviour(handler, request, number):
        asked[request["seed"]] += 1
        reply(handler, completion(right(request)))

    with serving(behaviour) as server:
        todo = remote(tmp_path, server.url)
        with monkeypatch.context() as patch:
            patch.setattr(remote_teacher.Remote, "_settle", settle)
            with pytest.raises(Interrupted, match="stopped with"):
                made(todo, out)
        assert 4 <= len(server.requests) <= 8
        made(todo, out)
    assert len(asked) == 12 and set(asked.values()) == {1}


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_process_that_is_ended_goes_on_and_asks_at_most_what_was_under_way_again(tmp_path, how):
    import signal

    out, asked = tmp_path / "rows.jsonl", Counter()

    def behaviour(handler, request, number):
        asked[request["seed"]] += 1
        time.sleep(0.02)
        reply(handler, completion(right(request)))

    with serving(behaviour) as server:
        who = {"name": "endpoint", "url": server.url, "model": "m", "concurrency": 2}
        todo = remote(
            tmp_path,
            server.url,
            teacher=who,
            method={"name": "rejection", "prompts": 20, "samples": 2},
        )
        path = recipe(tmp_path, todo)
        ended = []
        for stop_at in (5, 15, 25):
            process = command(path, out)
            while len(server.requests) < stop_at and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(getattr(signal, how))
            process.communicate(timeout=60)
            ended.append(process.returncode)
            assert not out.exists()
        process = command(path, out)
        said = process.communicate(timeout=60)[0]
    assert ended == [-9 if how == "SIGKILL" else 130] * 3 and process.returncode == 0
    assert "  40 asked for\n= 40 kept\n" in said and "40 rows in " in said
    assert len(asked) == 40
    again = sum(asked.values()) - 40
    assert again <= (3 * 2 if how == "SIGKILL" else 0)
    with serving(behaviour) as server:  # and the rows are those of one call
        whole = remote(
            tmp_path, server.url, method={"name": "rejection", "prompts": 20, "samples": 2}
        )
        made(whole, tmp_path / "whole.jsonl")
    plain = [
        [{k: v for k, v in r.items() if k != "made"} for r in rows(p)]
        for p in (out, tmp_path / "whole.jsonl")
    ]
    assert plain[0] == plain[1]


# ── recorded answers ─────────────────────────────────────────────────────────────────────────────


def test_recorded_traces_are_judged_and_paired_without_a_teacher(tmp_path):
    data, reward = tmp_path / "traces.jsonl", tmp_path / "reward.py"
    lines = [{"prompt": f"p{i // 3}", "answer": "x" * (1 + i % 3), "id": i} for i in range(12)]
    data.write_text("\n".join(map(json.dumps, lines)))
    reward.write_text("def reward(prompt, completion, row):\n    return len(completion) / 3\n")
    todo = settings(
        teacher={"name": "recorded", "by": "a large model"},
        task={"name": "jsonl", "train": str(data), "response": "answer", "reward": str(reward)},
        method={"name": "best_of_n"},
        output={"name": "preference"},
    )
    done = made(todo, tmp_path / "pairs.jsonl")
    assert (done.account.asked, done.account.kept, done.account.rows) == (12, 8, 4)
    found = rows(tmp_path / "pairs.jsonl")
    assert {(r["chosen"], r["rejected"]) for r in found} == {("xxx", "x")}
    assert {r["prompt"] for r in found} == {"p0", "p1", "p2", "p3"}  # none is held out
    assert found[0]["made"]["teacher"] == {"name": "recorded", "by": "a large model"}
    assert found[0]["id"] % 3 == 2 and "sampling" not in found[0]["made"]
    again = made(todo, tmp_path / "again.jsonl")
    assert again.account == done.account
    assert timeless(rows(tmp_path / "again.jsonl")) == timeless(found)
    assert journal_path(tmp_path / "again.jsonl").exists()
