"""One HTTP request with a bound on everything: seconds, bytes, and who may end it.

A socket's time-out counts from the last byte, so a server that drips is never late. Here a timer
shuts the socket at the deadline, wherever the exchange is. Redirects are not followed and proxies
not asked: what is sent goes to the address that was given.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

CONNECT_S = 10.0
PIECE_BYTES = 1 << 16

BrokenKind = Literal["refused", "timed_out", "dropped", "too_long", "malformed", "stopped"]


class Address(Struct, frozen=True):
    """Where an exchange goes: host and port, by TLS or not."""

    host: str
    port: int
    secure: bool
    path: str


class Reply(Struct, frozen=True):
    """What came back, whatever the status."""

    status: int
    retry_after: str | None
    body: bytes


class Broken(Struct, frozen=True):
    """Why nothing came back: no address or no listener, too late, cut off, too much, not HTTP."""

    kind: BrokenKind
    reason: str


def address(url: str) -> Address:
    """The parts of an http or https URL; raises ValueError, without quoting a password."""
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


class Line:
    """Exchanges that can all be ended at once, from any thread."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._open: set[_Cut] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """End every exchange that is under way, and refuse new ones."""
        self.stopped.set()
        with self._lock:
            cuts = list(self._open)
        for cut in cuts:
            cut()

    def post(
        self, to: Address, body: bytes, headers: dict[str, str], *, timeout_s: float, max_bytes: int
    ) -> Reply | Broken:
        """Send a body and return the reply: all of it within `timeout_s`, and of at most `max_bytes`.

        Raises nothing: neither from the network nor from what a server answers.
        """
        connection = _connection(to, timeout_s)
        cut = _Cut(connection)
        with self._lock:
            self._open.add(cut)
        timer = threading.Timer(timeout_s, cut)
        timer.daemon = True
        timer.start()
        try:
            result = self._exchange(cut, to, body, headers, timeout_s, max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: a host that IDNA cannot encode, a chunk's length that is no number.
            result = _broken(error, to)
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(cut)
            connection.close()
        # What was read before a cut may look whole.
        if cut.made or isinstance(result, Broken):
            if self.stopped.is_set():
                return Broken("stopped", "it was ended on request")
            if cut.made:
                return Broken("timed_out", f"no whole answer within {timeout_s:g} s")
        return result

    def _exchange(
        self,
        cut: "_Cut",
        to: Address,
        body: bytes,
        headers: dict[str, str],
        timeout_s: float,
        max_bytes: int,
    ) -> Reply | Broken:
        connection = cut.connection
        if not self.stopped.is_set():
            connection.connect()
            connection.sock.settimeout(timeout_s)
            cut.sock = connection.sock
        if cut.made or self.stopped.is_set():  # there was no socket yet that could be shut
            return Broken("stopped", "it was ended before it began")
        connection.request("POST", to.path, body, headers)
        response = connection.getresponse()
        pieces, size = [], 0
        while piece := response.read(PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                return Broken("too_long", f"the answer has more than {max_bytes:,} bytes")
        if response.length:  # of what was announced: a read of so many bytes ends early in silence
            raise http.client.IncompleteRead(b"", response.length)
        return Reply(response.status, response.getheader("Retry-After"), b"".join(pieces))


class _Cut:
    """Shuts a connection's socket: whoever waits for it wakes up."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection
        self.sock: socket.socket | None = None
        """Kept here: a connection forgets its own once a response without a length has begun."""
        self.made = False

    def __call__(self) -> None:
        self.made = True
        if self.sock is not None:
            # Not SSLSocket's own, which pulls the TLS state from under the thread that reads.
            with contextlib.suppress(OSError):  # not connected any more
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _connection(to: Address, timeout_s: float) -> http.client.HTTPConnection:
    connect_s = min(CONNECT_S, timeout_s)
    if not to.secure:
        return http.client.HTTPConnection(to.host, to.port, timeout=connect_s)
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(to.host, to.port, timeout=connect_s, context=context)


def _broken(error: Exception, to: Address) -> Broken:
    where = f"{to.host}:{to.port}"
    match error:
        case ssl.SSLCertVerificationError():
            return Broken("refused", f"{where} has no certificate to be trusted")
        case TimeoutError():
            return Broken("timed_out", f"{where} did not answer in time")
        case http.client.RemoteDisconnected() | http.client.IncompleteRead():
            return Broken("dropped", f"{where} closed the connection before the answer was whole")
        case ConnectionResetError() | BrokenPipeError():
            return Broken("dropped", f"{where} closed the connection before the answer was whole")
        case http.client.HTTPException() | ssl.SSLError():
            return Broken("malformed", f"{where} does not answer in HTTP ({type(error).__name__})")
        case OSError():
            reason = error.strerror or type(error).__name__
            return Broken("refused", f"{where} cannot be reached: {reason}")
    return Broken("malformed", f"{where} does not answer in HTTP ({type(error).__name__})")
