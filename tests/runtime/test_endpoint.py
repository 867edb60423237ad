"""The endpoint client, against a local server that is slow, down, busy, wrong, silent, endless, or fine."""

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from runtime.chat import Answer, Ask, Failure, one_line, redacted, retry_after_s
from runtime.endpoint import Client, Endpoint
from runtime.errors import BadInput

CANARY = "sk-canary/7f3a91+c0ffee=="
VARIABLE = "PIPPIN_TEST_TEACHER_KEY"
START_DEADLINE_S = 20

Behaviour = Callable[[BaseHTTPRequestHandler, dict, int], object]


def completion(text: str | None, **changes) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return json.dumps({"choices": [choice], "model": "m", "usage": usage} | changes).encode()


def reply(handler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class FakeServer:
    """Behaves as `behaviour(handler, request, number of the request)` says, and remembers."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.busy = self.busiest = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append(request)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    server.times.append(time.monotonic())
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                try:
                    behaviour(self, request, number)
                except OSError:
                    pass  # the client has left
                finally:
                    with lock:
                        server.busy -= 1

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[FakeServer]:
    server = FakeServer(behaviour)
    try:
        yield server
    finally:
        server.stop()


def endpoint(url: str, **changes) -> Endpoint:
    settings = {"timeout_s": 5.0, "attempts": 3, "first_wait_s": 0.01, "longest_wait_s": 0.05}
    return Endpoint(url=url, model="teacher", **(settings | changes))


def ask(text: str = "2+3=", key: int = 1, **changes) -> Ask:
    return Ask(messages=[{"role": "user", "content": text}], key=key, max_tokens=8, **changes)


def asked(behaviour: Behaviour, **changes) -> tuple[Answer | Failure, FakeServer]:
    with serving(behaviour) as server, Client(endpoint(server.url, **changes)) as client:
        return client.ask(ask()), server


def failure(behaviour: Behaviour, **changes) -> Failure:
    outcome, _ = asked(behaviour, **changes)
    assert isinstance(outcome, Failure), outcome
    assert outcome.reason and "\n" not in outcome.reason and len(outcome.reason) < 300
    return outcome


# ── what is sent and what is read ────────────────────────────────────────────────────────────────


def test_an_answer_comes_with_what_is_known_about_it():
    outcome, server = asked(lambda h, request, n: reply(h, completion("5")))
    assert isinstance(outcome, Answer)
    assert (outcome.text, outcome.finish_reason, outcome.model) == ("5", "stop", "m")
    assert (outcome.prompt_tokens, outcome.answer_tokens, outcome.attempts) == (3, 2, 1)
    assert 0 < outcome.seconds < 5
    assert server.paths == ["/v1/chat/completions"]


def test_a_request_says_what_was_asked():
    def echo(handler, request, number):
        reply(handler, completion(json.dumps(request)))

    with serving(echo) as server:
        settings = endpoint(server.url + "/", extra={"chat_template_kwargs": {"thinking": False}})
        with Client(settings) as client:
            client.ask(ask("é", key=7, temperature=0.5, top_p=0.9, stop=["\n"]))
            client.ask(ask("é", key=7))
            client.ask(ask("é", key=8))
    first, second, third = server.requests
    assert first["messages"] == [{"role": "user", "content": "é"}]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("teacher", 8, 0.5)
    assert (first["top_p"], first["stop"], first["stream"]) == (0.9, ["\n"], False)
    assert first["chat_template_kwargs"] == {"thinking": False}
    assert "stop" not in second and first["seed"] == second["seed"] != third["seed"]
    assert not any("Authorization" in headers for headers in server.headers)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart(name):
    message = {"content": "5", name: "2 and 3 make 5"}
    body = completion(None, choices=[{"message": message}])
    outcome, _ = asked(lambda h, request, n: reply(h, body))
    assert isinstance(outcome, Answer)
    assert (outcome.text, outcome.reasoning, outcome.finish_reason) == ("5", "2 and 3 make 5", "")


@pytest.mark.parametrize("usage", [None, [], "many", {"prompt_tokens": -1}, {"prompt_tokens": 1.5}])
def test_odd_usage_is_unknown_usage(usage):
    outcome, _ = asked(lambda h, request, n: reply(h, completion("5", usage=usage)))
    assert isinstance(outcome, Answer) and outcome.prompt_tokens is None


def test_a_request_that_is_no_text_is_rejected_here():
    with Client(endpoint("http://127.0.0.1:9/v1")) as client:
        outcome = client.ask(ask("\ud800"))
    assert isinstance(outcome, Failure) and (outcome.kind, outcome.attempts) == ("rejected", 0)


# ── failures, each by its name ───────────────────────────────────────────────────────────────────


def hang(handler, request, number) -> None:
    time.sleep(20)


def drip(handler, request, number) -> None:
    """Never late by a socket's own time-out, never done."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for i in range(500):
        handler.wfile.write(f"X-{i % 9}: 1\r\n".encode())
        handler.wfile.flush()
        time.sleep(0.02)


def drip_body(handler, request, number) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    for _ in range(500):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


@pytest.mark.parametrize("slow", [hang, drip, drip_body])
def test_a_slow_server_is_timed_out_however_it_is_slow(slow):
    began = time.monotonic()
    found = failure(slow, timeout_s=0.2, attempts=2)
    assert (found.kind, found.attempts) == ("timed_out", 2)
    assert time.monotonic() - began < 5


def test_a_server_that_is_down_refuses():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with Client(endpoint(url)) as client:
        outcome = client.ask(ask())
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.attempts) == ("refused", 3)
    assert "refused" in outcome.reason


def test_a_host_that_does_not_exist_refuses():
    for host in ("nowhere.invalid", "a" * 80 + ".invalid"):
        with Client(endpoint(f"http://{host}/v1", attempts=1)) as client:
            outcome = client.ask(ask())
        assert isinstance(outcome, Failure) and outcome.kind in ("refused", "malformed")


def close_early(handler, request, number) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def test_a_connection_that_breaks_is_dropped():
    assert failure(close_early).kind == "dropped"
    assert failure(lambda h, request, n: None).kind == "dropped"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"5", b"\xff\xfe", b"<html>busy</html>", b"{}",
        b'{"choices": []}', b'{"choices": {}}', b'{"choices": [{}]}', b'{"choices": [{"message": 3}]}',
        b'{"choices": [{"message": {"content": ["5"]}}]}', b"[" * 200_000,
        b'{"error": {"message": "model not loaded"}}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
    ],
)  # fmt: skip
def test_malformed_answers_are_named(body):
    found = failure(lambda h, request, n: reply(h, body))
    assert (found.kind, found.attempts) == ("malformed", 3)


def test_an_error_inside_an_answer_is_quoted():
    body = b'{"error": {"message": "model not loaded"}}'
    assert "model not loaded" in failure(lambda h, request, n: reply(h, body)).reason


def test_a_server_that_does_not_speak_http_is_malformed():
    found = failure(lambda h, request, n: h.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"))
    assert found.kind == "malformed"
    found = failure(
        lambda h, request, n: h.wfile.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
    )
    assert found.kind in ("malformed", "dropped")
    headers = b"X: 1\r\n" * 20_000  # 120 kB
    found = failure(lambda h, request, n: h.wfile.write(b"HTTP/1.1 200 OK\r\n" + headers))
    assert found.kind == "malformed"


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_an_empty_answer_is_not_asked_for_again(text):
    found = failure(lambda h, request, n: reply(h, completion(text)))
    assert (found.kind, found.attempts) == ("empty", 1)


def test_a_million_tokens_are_too_long_and_not_read_to_the_end():
    read = []

    def endless(handler, request, number):
        handler.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"choices": [{"message": {"content": "')
        for _ in range(1000):
            handler.wfile.write(b"token " * 1000)
            read.append(6000)

    found = failure(endless, max_bytes=100_000)
    assert (found.kind, found.attempts) == ("too_long", 1)
    assert sum(read) < 6_000_000


def test_a_length_that_is_announced_is_no_memory():
    def boast(handler, request, number):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n{")

    assert failure(boast).kind == "dropped"


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (400, "rejected", 1), (404, "rejected", 1), (413, "rejected", 1), (302, "rejected", 1),
        (501, "rejected", 1), (204, "rejected", 1), (401, "unauthorized", 1), (403, "unauthorized", 1),
        (429, "rate_limited", 3), (500, "server_error", 3), (503, "server_error", 3),
    ],
)  # fmt: skip
def test_a_status_has_a_kind_and_only_a_passing_one_is_tried_again(status, kind, attempts):
    def behave(handler, request, number):
        reply(handler, b'{"error": {"message": "no"}}' if status != 204 else b"", status)

    found = failure(behave)
    assert (found.kind, found.attempts) == (kind, attempts)
    assert found.reason == f"status {status}" + (": no" if status != 204 else "")


def test_a_redirect_is_not_followed():
    with serving(lambda h, request, n: reply(h, completion("5"))) as other:
        found = failure(lambda h, request, n: reply(h, b"", 307, Location=other.url))
        assert found.kind == "rejected" and other.requests == []


def test_a_cookie_is_not_sent_back_and_a_compressed_answer_is_not_asked_for():
    def behave(handler, request, number):
        reply(handler, completion("5"), Set_Cookie="a=1; Path=/")

    with serving(behave) as server, Client(endpoint(server.url)) as client:
        assert all(isinstance(client.ask(ask(key=i)), Answer) for i in range(2))
    assert not any("Cookie" in headers for headers in server.headers)
    assert {headers["Accept-Encoding"] for headers in server.headers} == {"identity"}


def test_a_proxy_that_the_environment_names_is_not_asked(monkeypatch):
    with serving(lambda h, request, n: reply(h, completion("6"))) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        outcome, _ = asked(lambda h, request, n: reply(h, completion("5")))
        assert isinstance(outcome, Answer) and outcome.text == "5" and proxy.requests == []


def test_a_server_that_takes_no_request_is_timed_out():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with Client(endpoint(url, timeout_s=0.3, attempts=1)) as client:
            began = time.monotonic()
            outcome = client.ask(ask("x" * (32 << 20)))
    assert isinstance(outcome, Failure) and outcome.kind == "timed_out"
    assert time.monotonic() - began < 5


def test_a_certificate_without_a_known_issuer_is_refused(tmp_path):
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
         "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def accept() -> None:
            with suppress(OSError):
                context.wrap_socket(listener.accept()[0], server_side=True)

        threading.Thread(target=accept, daemon=True).start()
        with Client(endpoint(f"https://localhost:{port}/v1", attempts=1)) as client:
            outcome = client.ask(ask())
    assert isinstance(outcome, Failure) and outcome.kind == "refused"
    assert "certificate" in outcome.reason


# ── attempts and waits ───────────────────────────────────────────────────────────────────────────


def flaky(failures: int, **headers: str) -> Behaviour:
    def behave(handler, request, number):
        if number < failures:
            reply(handler, b"busy", 429, **headers)
        else:
            reply(handler, completion("5"))

    return behave


def test_what_passes_is_tried_again():
    outcome, server = asked(flaky(2))
    assert isinstance(outcome, Answer) and outcome.attempts == 3
    assert len(server.requests) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_a_lower_bound_for_every_ask(form):
    wait = "1" if form == "seconds" else formatdate(time.time() + 3, usegmt=True)
    for attempts in (2, 1):
        with serving(flaky(1, Retry_After=wait)) as server:
            settings = endpoint(server.url, longest_wait_s=10.0, attempts=attempts)
            with Client(settings) as client:
                outcomes = [client.ask(ask()) for _ in range(3 - attempts)]
        assert isinstance(outcomes[-1], Answer)
        waited_s = server.times[1] - server.times[0]
        assert waited_s > 0.95 or (form, attempts) == ("date", 1)


def test_a_server_that_asks_for_an_hour_is_not_waited_for_nor_asked_again():
    with serving(flaky(9, Retry_After="3600")) as server, Client(endpoint(server.url)) as client:
        first, second = client.ask(ask()), client.ask(ask())
    assert isinstance(first, Failure) and isinstance(second, Failure)
    assert (first.kind, first.attempts, second.kind, second.attempts) == (
        "rate_limited", 1, "rate_limited", 0,
    )  # fmt: skip
    assert "more than longest_wait_s" in second.reason
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("5", 5), ("1.5", 1.5), ("-3", 0), ("soon", None), ("nan", None), ("inf", None),
     ("", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("Thu, 99 Jan 9999", None)],
)  # fmt: skip
def test_retry_after_is_read_in_both_forms(header, seconds):
    assert retry_after_s(header) == seconds


def test_waits_double_within_bounds_and_are_spread_by_key():
    settings = endpoint("http://127.0.0.1:9/v1", first_wait_s=1.0, longest_wait_s=6.0)
    with Client(settings) as client:
        for attempts, full in ((1, 1), (2, 2), (3, 4), (4, 6), (200, 6)):
            waits = [client.backoff_s(key, attempts) for key in range(50)]
            assert full / 2 <= min(waits) < 0.6 * full and 0.9 * full < max(waits) <= full
        assert client.backoff_s(3, 2) == client.backoff_s(3, 2)
        assert client.backoff_s(3, 1) / 1 != client.backoff_s(3, 2) / 2


# ── many at once ─────────────────────────────────────────────────────────────────────────────────


def test_many_asks_run_at_once_but_never_more_than_said_and_each_once():
    def behave(handler, request, number):
        time.sleep(0.05)
        reply(handler, completion(request["messages"][0]["content"]))

    with serving(behave) as server, Client(endpoint(server.url, concurrency=3)) as client:
        found = dict(client.ask_all(ask(str(i), key=i) for i in range(12)))
    assert [found[i].text for i in range(12)] == [str(i) for i in range(12)]  # type: ignore
    assert server.busiest == 3 and len(server.requests) == 12


def test_asks_are_read_only_as_fast_as_they_are_answered():
    read = []

    def endless():
        for i in range(10**9):
            read.append(i)
            yield ask(str(i), key=i)

    def behave(handler, request, number):
        reply(handler, completion("5"))

    with serving(behave) as server, Client(endpoint(server.url, concurrency=2)) as client:
        outcomes = client.ask_all(endless())
        for _ in range(5):
            next(outcomes)
        assert len(read) <= 8
        outcomes.close()


def test_a_connection_serves_many_asks_and_one_that_the_server_closed_costs_no_attempt():
    connections = set()

    def behave(handler, request, number):
        handler.protocol_version = "HTTP/1.1"
        connections.add(handler.client_address)
        reply(handler, completion("5"))
        handler.close_connection = number % 3 == 2  # without a word about it

    with serving(behave) as server, Client(endpoint(server.url, attempts=1)) as client:
        for key in range(9):
            assert isinstance(client.ask(ask(key=key)), Answer)
            time.sleep(0.02)
    assert len(connections) == 3


def test_one_failure_is_not_the_others():
    def behave(handler, request, number):
        bad = request["messages"][0]["content"] == "3"
        reply(handler, b"{" if bad else completion("5"))

    with serving(behave) as server, Client(endpoint(server.url)) as client:
        found = dict(client.ask_all(ask(str(i), key=i) for i in range(6)))
    assert {i for i, outcome in found.items() if isinstance(outcome, Failure)} == {3}


def test_closing_ends_what_waits_and_what_is_under_way():
    with serving(hang) as server:
        client = Client(endpoint(server.url, concurrency=2, timeout_s=30.0))
        threading.Timer(0.2, client.close).start()
        began = time.monotonic()
        found = dict(client.ask_all([ask(key=i) for i in range(5)]))
        assert time.monotonic() - began < 10
    assert {outcome.kind for outcome in found.values()} == {"stopped"}  # type: ignore
    later = client.ask(ask())
    assert isinstance(later, Failure) and (later.kind, later.attempts) == ("stopped", 0)


def test_what_is_under_way_ends_with_the_loop_that_reads_the_outcomes():
    def behave(handler, request, number):
        if number:
            hang(handler, request, number)
        reply(handler, completion("5"))

    with serving(behave) as server, Client(endpoint(server.url, concurrency=3)) as client:
        outcomes = client.ask_all(ask(key=i) for i in range(100))
        assert isinstance(next(outcomes)[1], Answer)
        outcomes.close()
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 5
        assert len(server.requests) <= 4


def test_settings_are_checked_without_a_thread_or_a_connection():
    before = threading.active_count()
    Client(endpoint("http://127.0.0.1:9/v1"))
    assert threading.active_count() == before


def test_closing_ends_a_long_wait():
    with serving(flaky(9, Retry_After="30")) as server:
        client = Client(endpoint(server.url, longest_wait_s=60.0))
        threading.Timer(0.2, client.close).start()
        began = time.monotonic()
        outcome = client.ask(ask())
        assert time.monotonic() - began < 10
    assert isinstance(outcome, Failure) and outcome.kind == "stopped"


# ── the key ──────────────────────────────────────────────────────────────────────────────────────


def leaky(handler, request, number) -> None:
    """Sends the key back wherever it can."""
    sent = handler.headers["Authorization"].removeprefix("Bearer ")
    kinds = [
        lambda: reply(handler, completion(f"it is {sent}", model=sent)),
        lambda: reply(handler, json.dumps({"error": {"message": f"bad key {sent}"}}).encode(), 401),
        lambda: reply(handler, f"<html>{sent} {sent}</html>".encode()),
        lambda: reply(handler, b'{"x": "' + sent.replace("/", "\\/").encode() + b'", ', 400),
        lambda: reply(handler, (" " * 180 + sent * 3).encode(), 500),
        lambda: reply(handler, completion("", choices=[{"message": {}, "finish_reason": sent}])),
    ]
    kinds[number % len(kinds)]()


def test_the_key_is_sent_and_is_in_nothing_else(monkeypatch, capfd, caplog):
    monkeypatch.setenv(VARIABLE, CANARY)
    with serving(leaky) as server:
        settings = endpoint(server.url, key_variable=VARIABLE, attempts=1)
        with Client(settings) as client:
            outcomes = [client.ask(ask(key=i)) for i in range(6)]
            everything = [repr(client), repr(settings), repr(outcomes)]
            everything.append(msgspec.json.encode([settings, outcomes]).decode())
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {CANARY}"}
    assert isinstance(outcomes[0], Answer) and outcomes[0].text == "it is [key]"
    out, err = capfd.readouterr()
    for written in [*everything, out, err, caplog.text]:
        for part in (CANARY, CANARY[:12], CANARY[-12:], CANARY.replace("/", "\\/")):
            assert part not in written


def test_the_key_is_in_no_log_even_when_everything_is_logged(monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, CANARY)

    def behave(handler, request, number):
        reply(handler, completion("5"), X_Sent=handler.headers["Authorization"])

    caplog.set_level("DEBUG")
    with serving(behave) as server, Client(endpoint(server.url, key_variable=VARIABLE)) as client:
        assert isinstance(client.ask(ask()), Answer)
    assert CANARY not in caplog.text


def test_redaction_comes_before_the_cut():
    text = "x" * 195 + CANARY
    assert CANARY[:4] not in one_line(text, CANARY)
    assert redacted(text, "") == text


@pytest.mark.parametrize("value", ["", "  ", "two words", "sk-\u00e9", "sk-a\nb"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(BadInput, match=VARIABLE) as caught:
        Client(endpoint("http://127.0.0.1:9/v1", key_variable=VARIABLE))
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize("mistake", [CANARY, "hf_abcdefghijkl", "$KEY"])
def test_a_key_in_the_place_of_its_variable_is_not_repeated(mistake):
    with pytest.raises(BadInput, match="name in capitals") as caught:
        Client(endpoint("http://127.0.0.1:9/v1", key_variable=mistake))
    assert mistake not in str(caught.value)


def test_a_key_is_not_sent_in_the_clear(monkeypatch):
    monkeypatch.setenv(VARIABLE, CANARY)
    with pytest.raises(BadInput, match=r"needed https .* plain http to teacher\.example"):
        Client(endpoint("http://teacher.example/v1", key_variable=VARIABLE))
    for url in ("https://teacher.example/v1", "http://localhost:1/v1", "http://[::1]:1/v1"):
        Client(endpoint(url, key_variable=VARIABLE)).close()


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://a/v1", "http://", "http://a:port/v1", "http://a/v1?k=1",
     "http://a/v 1", "http://a/v1#x", "http://é/v1", "http://a/v1\n", "http://[::1/v1"],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused(url):
    with pytest.raises(BadInput, match=r"endpoint\.url: needed"):
        Client(endpoint(url))


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(BadInput, match="without a user or password") as caught:
        Client(endpoint("https://user:hunter2@a/v1"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("concurrency", 0), ("timeout_s", 0.0), ("attempts", -1), ("max_bytes", 0),
                        ("longest_wait_s", float("nan")), ("first_wait_s", float("inf"))]
)  # fmt: skip
def test_a_bound_is_above_zero(name, value):
    with pytest.raises(BadInput, match=rf"endpoint\.{name}: needed a number above 0"):
        Client(endpoint("http://a/v1", **{name: value}))


def test_a_model_has_a_name():
    with pytest.raises(BadInput, match=r"endpoint\.model"):
        Client(msgspec.structs.replace(endpoint("http://a/v1"), model=""))


# ── a real one ───────────────────────────────────────────────────────────────────────────────────


def test_mlx_lm_s_own_server_answers(tmp_path):
    """A random network of two layers; starting it takes seconds, and it has START_DEADLINE_S."""
    from tests.policies.checkpoints import write

    model = write(tmp_path / "model", "qwen3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_healthy(port, server)
        settings = endpoint(f"http://127.0.0.1:{port}/v1", timeout_s=START_DEADLINE_S)
        settings = msgspec.structs.replace(settings, model=str(model))
        with Client(settings) as client:
            found = dict(client.ask_all(ask(f"{i}+1=", key=i) for i in range(4)))
            missing = msgspec.structs.replace(settings, model=str(Path("no", "such", "model")))
        with Client(missing) as client:
            refused = client.ask(ask())
    finally:
        server.terminate()
        server.wait(timeout=10)
    answers = [outcome for outcome in found.values() if isinstance(outcome, Answer)]
    assert len(answers) == 4, found
    assert all(answer.text and answer.answer_tokens for answer in answers)
    assert {answer.finish_reason for answer in answers} <= {"length", "stop"}
    assert isinstance(refused, Failure) and refused.reason


def _wait_until_healthy(port: int, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        assert server.poll() is None, "mlx_lm.server ended"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"mlx_lm.server was not up within {START_DEADLINE_S} s")


def test_a_client_that_winds_down_lets_answers_come_and_repeats_nothing():
    begun = threading.Barrier(3)

    def one_is_slow(handler, request, number):
        if len(server.requests) <= 2:
            begun.wait(START_DEADLINE_S)
        if request["messages"][-1]["content"] == "busy":
            reply(handler, b"busy", 503)
        else:
            time.sleep(0.3)
            reply(handler, completion("5"))

    patience = {"first_wait_s": 60.0, "longest_wait_s": 120.0, "attempts": 9}
    with (
        serving(one_is_slow) as server,
        Client(endpoint(server.url, **patience)) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        outcomes = pool.submit(lambda: dict(client.ask_all([ask("busy"), ask("2+3=")])))
        begun.wait(START_DEADLINE_S)
        began = time.monotonic()
        client.wind_down()
        found = outcomes.result(timeout=30)
        assert time.monotonic() - began < 10
        assert isinstance(found[1], Answer) and found[1].text == "5"
        assert isinstance(found[0], Failure) and found[0].kind == "stopped"
        late = client.ask(ask())
        assert isinstance(late, Failure) and (late.kind, late.attempts) == ("stopped", 0)
        assert len(server.requests) == 2
