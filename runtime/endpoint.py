"""A teacher behind an OpenAI-compatible endpoint: text in, text out, and every failure has a name.

    with Client(Endpoint(url="http://127.0.0.1:8080/v1", model="teacher")) as teacher:
        for index, outcome in teacher.ask_all(asks):    # as they come, at most `concurrency` at once
            match outcome:
                case Answer(): ...                      # store it at once: it has been paid for
                case Failure(): ...                     # count it by kind

It uses chat completions only (LM Studio, mlx_lm.server, vllm-mlx, llama.cpp and others have them). The key
comes from an environment variable and goes into one header. It never gets into a record, a reason or an
answer, whatever the server sends back. Waits grow with each attempt and are spread by the ask's own key. They
are never shorter than the server's Retry-After, which holds for all asks of the client.
"""

import ipaddress
import math
import os
import re
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import anyio
import msgspec
import numpy as np
from msgspec import Struct, field

from runtime.chat import Ask, Failure, Outcome, outcome, request_body, retry_after_s
from runtime.errors import BadInput
from runtime.exchange import Address, Exchanges, Reply, Stopped, address
from runtime.keys import derive, uniform

TRANSIENT = {"refused", "timed_out", "dropped", "rate_limited", "server_error", "malformed"}
"""Kinds of failure that get another attempt; a retry after any other kind would only cost twice."""
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
"""Matches a variable's name. A key that is set by mistake instead of a name does not match, and errors do
not quote it."""
LOOK_S = 0.1
"""Seconds between two looks at whether another attempt is still wanted."""
STOPPED = Failure(kind="stopped", reason="the request was cancelled")


class Endpoint(Struct, frozen=True, kw_only=True):
    """The address of an endpoint, and the limits of requests to it."""

    url: str
    """The address up to and including the version, such as "http://127.0.0.1:8080/v1"."""
    model: str
    key_variable: str = ""
    """Name of the environment variable that holds the key; none is sent without it."""
    concurrency: int = 4
    timeout_s: float = 300.0
    """Time limit of one attempt, from connecting to the last byte."""
    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    """Longest wait before an attempt; if a server asks for a longer one, the ask fails."""
    max_bytes: int = 4 << 20
    """Largest size of one response."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request's body."""


class Client:
    """Sends asks to one endpoint, from any number of threads; `close` ends all asks under way."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises BadInput for settings that cannot be used, and for a missing key."""
        _check(endpoint)
        self._endpoint = endpoint
        to = _chat_address(endpoint)
        self._secret = _secret(endpoint, to)
        self._exchanges = Exchanges(to)
        self._places = anyio.Semaphore(endpoint.concurrency)
        self._open_at = 0.0
        self._winding_down = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every ask, waiting or under way, as a failure "stopped"; later ones fail likewise."""
        self._exchanges.stop()

    def wind_down(self) -> None:
        """Lets attempts under way come to their end and makes no other.

        An ask that would have had another attempt, or its first, ends as a failure "stopped". So all
        has ended after `timeout_s`.
        """
        self._winding_down = True

    def ask(self, ask: Ask) -> Outcome:
        """Returns the answer, or the failure of the last attempt. Raises nothing."""
        return self._start(ask).result()

    def ask_all(self, asks: Iterable[Ask]) -> Generator[tuple[int, Outcome], None, None]:
        """Yields outcomes with the number of their ask, in the order of their arrival.

        `asks` is read only as requests finish, so it may be endless.
        """
        running: dict[Future[Outcome], int] = {}
        try:
            for index, ask in enumerate(asks):
                running[self._start(ask)] = index
                if len(running) >= self._endpoint.concurrency:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            for future in running:
                future.cancel()

    def backoff_s(self, key: int, attempts: int) -> float:
        """Returns the seconds to wait after `attempts` attempts.

        The wait doubles with each attempt; the result is between half of it and all of it, by `key`.
        """
        grown_s = self._endpoint.first_wait_s * 2.0 ** min(attempts - 1, 60)
        stream, position = np.array([derive(key, "backoff"), attempts], np.uint64).reshape(2, 1)
        with np.errstate(over="ignore"):
            share = float(uniform(stream, position)[0])
        return min(grown_s, self._endpoint.longest_wait_s) * (0.5 + 0.5 * share)

    def _start(self, ask: Ask) -> Future[Outcome]:
        try:
            return self._exchanges.start(self._asked, ask)
        except Stopped:
            future = Future[Outcome]()
            future.set_result(msgspec.structs.replace(STOPPED, attempts=0))
            return future

    async def _asked(self, ask: Ask) -> Outcome:
        body = request_body(ask, self._endpoint.model, self._endpoint.extra)
        if isinstance(body, Failure):
            return body
        began, attempts = time.monotonic(), 0
        try:
            result = await self._wait(ask.key, attempts)
            while result is None:
                attempts += 1
                result = await self._attempt(body)
                passing = isinstance(result, Failure) and result.kind in TRANSIENT
                if passing and attempts < self._endpoint.attempts:
                    hindrance = await self._wait(ask.key, attempts)
                    if hindrance is None or hindrance is STOPPED:
                        result = hindrance
        except anyio.get_cancelled_exc_class():  # `close` cancels the task, which ends here
            result = STOPPED
        seconds = time.monotonic() - began
        return msgspec.structs.replace(result, attempts=attempts, seconds=seconds)

    async def _attempt(self, body: bytes) -> Outcome:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # so that `max_bytes` bounds the decoded size too
            "User-Agent": "pippin",
        }
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        async with self._places:
            reply = await self._exchanges.post(
                body,
                headers,
                timeout_s=self._endpoint.timeout_s,
                max_bytes=self._endpoint.max_bytes,
            )
        result = outcome(reply, self._secret)
        if isinstance(reply, Reply) and isinstance(result, Failure):
            asked_s = retry_after_s(reply.retry_after)
            if asked_s is not None:
                self._open_at = max(self._open_at, time.monotonic() + asked_s)
        return result

    async def _wait(self, key: int, attempts: int) -> Failure | None:
        """Sleeps until another attempt may be made; returns a failure if the server asks for too long."""
        longest_s = self._endpoint.longest_wait_s
        ready_at = time.monotonic() + (self.backoff_s(key, attempts) if attempts else 0.0)
        while not self._winding_down:
            now = time.monotonic()
            if self._open_at - now > longest_s:
                held_s = self._open_at - now
                reason = f"the server asks to wait {held_s:.0f} s, more than longest_wait_s = {longest_s:g}"
                return Failure(kind="rate_limited", reason=reason)
            left_s = max(self._open_at, ready_at) - now
            if left_s <= 0:
                return None
            await anyio.sleep(min(left_s, LOOK_S))
        return STOPPED


def _finished(running: dict[Future[Outcome], int]) -> Iterator[tuple[int, Outcome]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=running.__getitem__):
        yield running.pop(future), future.result()


def _check(endpoint: Endpoint) -> None:
    for name in (
        "concurrency", "timeout_s", "attempts", "first_wait_s", "longest_wait_s", "max_bytes"
    ):  # fmt: skip
        value = getattr(endpoint, name)
        if not 0 < value < math.inf:
            raise BadInput(f"endpoint.{name}: needed a number above 0, got {value}")
    if not endpoint.model:
        raise BadInput("endpoint.model: needed the model's name at the endpoint, got none")


def _chat_address(endpoint: Endpoint) -> Address:
    try:
        base = address(endpoint.url)
    except ValueError as error:
        raise BadInput(f"endpoint.url: {error}") from None
    return msgspec.structs.replace(base, path=f"{base.path}/chat/completions")


def _secret(endpoint: Endpoint, to: Address) -> str:
    variable = endpoint.key_variable
    if not variable:
        return ""
    if not VARIABLE.fullmatch(variable):
        raise BadInput(
            "endpoint.key_variable: needed an environment variable's name in capitals, got something else"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise BadInput(f"endpoint.key_variable: needed a key in ${variable}, got none")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise BadInput(
            f"endpoint.key_variable: needed one printable word in ${variable}, got something else"
        )
    if not to.secure and not _loopback(to.host):
        raise BadInput(
            f"endpoint.url: needed https to send the key in ${variable}, got plain http to {to.host}"
        )
    return key


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
