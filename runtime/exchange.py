"""HTTP exchanges with one server, bounded in seconds and bytes; any thread can cancel them.

    exchanges = Exchanges(address("http://127.0.0.1:8080/v1"))
    future = exchanges.start(work, ...)    # a coroutine function, which awaits exchanges.post(...)
    exchanges.stop()                       # cancels everything that was started

httpx2 implements HTTP. Its time-outs restart with each byte received, so a server that sends slowly is never
late; here one deadline holds from connecting to the last byte. Only httpx2's transport is used, which follows
no redirect, keeps no cookie and reads neither proxies nor the environment, so a request goes to the given
address only.
"""

import logging
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal, TypeVar, TypeVarTuple
from urllib.parse import urlsplit

import anyio
from anyio.from_thread import BlockingPortal
from msgspec import Struct

if TYPE_CHECKING:  # the import takes a tenth of a second, so only a process that uses it imports it
    import httpx2

CONNECT_S = 10.0
IDLE_S = 2.0
"""Seconds that an idle connection is kept for the next request; servers close theirs after 5 s or more."""
STOP_S = 1.0
"""Seconds that `stop` waits for connections to close; the look-up of a host's name cannot be cancelled."""

BrokenKind = Literal["refused", "timed_out", "dropped", "too_long", "malformed", "stopped"]
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Address(Struct, frozen=True):
    """The address of a server: host, port, TLS or not, and path."""

    host: str
    port: int
    secure: bool
    path: str

    @property
    def url(self) -> str:
        """Returns the address as a URL, with an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.path}"


class Reply(Struct, frozen=True):
    """The server's reply, whatever its status."""

    status: int
    retry_after: str | None
    body: bytes


class Broken(Struct, frozen=True):
    """The reason for which there is no reply: not reachable, too late, cut off, too large, or not HTTP."""

    kind: BrokenKind
    reason: str


class Stopped(Exception):
    """Raised by `start` after `stop`."""


def address(url: str) -> Address:
    """Returns the parts of an http or https URL; raises ValueError, without quoting a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(
            f"needed an http or https URL, got one that cannot be read: {error}"
        ) from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("needed a URL without a user or password in it")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"needed an http or https URL, got {url!r}")
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"needed a plain URL without ? and #, got {url!r}")
    secure = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if secure else 80), secure, parts.path.rstrip("/"))


class Exchanges:
    """Runs exchanges in an event loop in a thread of its own; any thread can end them all."""

    def __init__(self, to: Address) -> None:
        self._to = to
        self._lock = threading.Lock()
        self._stopped = False
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._transport: httpx2.AsyncHTTPTransport

    def start(
        self, work: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments
    ) -> Future[Result]:
        """Runs a coroutine function in the loop; raises Stopped after `stop`."""
        with self._lock:
            if self._stopped:
                raise Stopped
            if self._portal is None:
                self._portal = self._open()
            return self._portal.start_task_soon(work, *arguments)

    def stop(self) -> None:
        """Cancels everything that was started, and closes the connections."""
        with self._lock:
            first, self._stopped = not self._stopped, True
            if first and self._portal is not None:
                self._portal.start_task_soon(self._portal.stop, True)
        if self._thread is not None:
            self._thread.join(STOP_S)

    async def post(
        self, body: bytes, headers: dict[str, str], *, timeout_s: float, max_bytes: int
    ) -> Reply | Broken:
        """Sends a body and returns the reply, or Broken if it is not whole in time or exceeds `max_bytes`.

        Raises nothing but cancellation, whatever the network or the server does.
        """
        import httpx2

        with anyio.move_on_after(timeout_s):
            try:
                return await self._exchange(body, headers, max_bytes)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                # ValueError: a host that IDNA cannot encode.
                return _broken(error, self._to)
        return Broken("timed_out", f"no whole answer within {timeout_s:g} s")

    async def _exchange(
        self, body: bytes, headers: dict[str, str], max_bytes: int
    ) -> Reply | Broken:
        import httpx2

        timeouts = httpx2.Timeout(None, connect=CONNECT_S).as_dict()
        request = httpx2.Request(
            "POST", self._to.url, headers=headers, content=body, extensions={"timeout": timeouts}
        )
        response = await self._transport.handle_async_request(request)
        pieces, size = [], 0
        try:
            async for piece in response.aiter_raw():
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    return Broken("too_long", f"the answer has more than {max_bytes:,} bytes")
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers.get("Retry-After"), b"".join(pieces))

    def _open(self) -> BlockingPortal:
        import httpx2

        # Its debug log contains the server's headers, which may repeat a key.
        logging.getLogger("httpcore2").setLevel(logging.WARNING)
        self._transport = httpx2.AsyncHTTPTransport(
            # Reading the system's certificates takes 30 ms; without them no server is trusted.
            verify=True if self._to.secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
            limits=httpx2.Limits(keepalive_expiry=IDLE_S),
        )
        opened: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(
            target=anyio.run, args=(self._live, opened), name="exchanges", daemon=True
        )
        self._thread.start()
        return opened.result()

    async def _live(self, opened: Future[BlockingPortal]) -> None:
        async with self._transport, BlockingPortal() as portal:
            opened.set_result(portal)
            await portal.sleep_until_stopped()


def _broken(error: Exception, to: Address) -> Broken:
    import httpx2

    where = f"{to.host}:{to.port}"
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Broken("refused", f"{where} has no certificate to be trusted")
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Broken("malformed", f"{where} does not answer in TLS")
    match error:
        case httpx2.TimeoutException():
            return Broken("timed_out", f"{where} did not answer in time")
        case httpx2.ConnectError() | OSError():
            reasons = [reason for cause in causes if (reason := _system_reason(cause))]
            return Broken("refused", f"{where} cannot be reached: {(reasons or ['no reason'])[-1]}")
        case httpx2.NetworkError():
            return Broken("dropped", f"{where} closed the connection before the answer was whole")
        case httpx2.RemoteProtocolError() if _is_end(str(error)):
            return Broken("dropped", f"{where} closed the connection before the answer was whole")
    return Broken("malformed", f"{where} does not answer in HTTP ({type(error).__name__})")


def _is_end(message: str) -> bool:
    """Returns whether a protocol error's message is that of h11 or httpcore2 for an ended connection."""
    return "closed connection" in message or "disconnected" in message


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the error, its cause, that one's cause, and so on; of a group, the first of its errors."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__


def _system_reason(error: BaseException) -> str:
    """Returns the operating system's text for an error, which asyncio replaces by the address; or ""."""
    if isinstance(error, socket.gaierror):
        return error.strerror or ""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
