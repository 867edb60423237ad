"""A chat completion as records: what is asked, what comes, and every way in which nothing comes.

The OpenAI format in both directions, read leniently where it does not matter (usage, unknown fields)
and strictly where it does (there is a text, or there is a failure). Whatever a server wrote is
redacted here, before it can reach a record.
"""

import email.utils
import math
import time
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Struct, field

from runtime.exchange import Broken, BrokenKind, Reply
from runtime.keys import derive

FailureKind = (
    BrokenKind | Literal["rate_limited", "unauthorized", "rejected", "server_error", "empty"]
)
LONGEST_REASON = 200
REDACTED = "[key]"


class Ask(Struct, frozen=True, kw_only=True):
    """One request. `key` is its identity: of the seed that is sent and of the waits."""

    messages: list[dict[str, str]]
    key: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: list[str] = field(default_factory=list)


class Answer(Struct, frozen=True, kw_only=True):
    """Text that came, with what the server says about it. It may be cut: `finish_reason` "length"."""

    text: str
    reasoning: str = ""
    """Where the server splits it off."""
    finish_reason: str = ""
    model: str = ""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    attempts: int = 1
    seconds: float = 0.0


class Failure(Struct, frozen=True, kw_only=True):
    """No text, after so many attempts; `reason` is one line."""

    kind: FailureKind
    reason: str
    attempts: int = 1
    seconds: float = 0.0


Outcome = Answer | Failure


def request_body(ask: Ask, model: str, extra: dict[str, Any]) -> bytes | Failure:
    """The JSON of a request, or a failure "rejected" if its text cannot be written as JSON."""
    body = {
        "model": model,
        "messages": ask.messages,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "seed": derive(ask.key, "seed") & 0x7FFFFFFF,
        "stream": False,
    }
    if ask.stop:
        body["stop"] = ask.stop
    try:
        return msgspec.json.encode(body | extra)
    except (TypeError, UnicodeError, RecursionError) as error:
        reason = f"the request cannot be written as JSON ({type(error).__name__})"
        return Failure(kind="rejected", reason=reason, attempts=0)


def outcome(result: Reply | Broken, secret: str) -> Outcome:
    """What an exchange comes to; `secret`, if any, is in none of it."""
    if isinstance(result, Broken):
        return Failure(kind=result.kind, reason=one_line(result.reason, secret))
    if kind := _status_kind(result.status):
        said = one_line(_error_message(result.body), secret)
        return Failure(kind=kind, reason=f"status {result.status}" + (f": {said}" if said else ""))
    try:
        completion = msgspec.json.decode(result.body, type=_Completion)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        # An error in a body that should have been an answer says more than the schema does.
        said = one_line(_error_message(result.body) or str(error), secret)
        return Failure(kind="malformed", reason=f"the answer cannot be read: {said}")
    if not completion.choices:
        return Failure(kind="malformed", reason="the answer cannot be read: it has no choices")
    choice = completion.choices[0]
    ended = one_line(choice.finish_reason or "", secret)
    text = choice.message.content or ""
    if not text.strip():
        return Failure(kind="empty", reason=f"no text came (finish_reason {ended or 'none'})")
    return Answer(
        text=redacted(text, secret),
        reasoning=redacted(
            choice.message.reasoning_content or choice.message.reasoning or "", secret
        ),
        finish_reason=ended,
        model=one_line(completion.model or "", secret),
        prompt_tokens=_count(completion.usage, "prompt_tokens"),
        answer_tokens=_count(completion.usage, "completion_tokens"),
    )


def redacted(text: str, secret: str) -> str:
    """The text without the secret, however it was escaped."""
    if secret:
        for spelling in {secret, secret.replace("/", "\\/"), quote(secret, safe="")}:
            text = text.replace(spelling, REDACTED)
    return text


def one_line(text: str, secret: str) -> str:
    """Redacted first, then one printable line of bounded length: the cut leaves no half of a secret."""
    plain = "".join(c if c.isprintable() else " " for c in redacted(text, secret))
    line = " ".join(plain.split())
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, in either of its forms; None if it cannot be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


class _Message(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: Any = None


def _status_kind(status: int) -> FailureKind | None:
    if status == 200:
        return None
    if status == 429:
        return "rate_limited"
    if status in (401, 403):
        return "unauthorized"
    if status in (408, 425) or (status >= 500 and status != 501):
        return "server_error"
    return "rejected"


def _error_message(body: bytes) -> str:
    """What a server says about an error: its message if there is one, else the body."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return body.decode("utf-8", "replace")
    if isinstance(said, dict):
        said = said.get("error") or said.get("detail") or said.get("message") or ""
        if isinstance(said, dict):
            said = said.get("message") or ""
    return said if isinstance(said, str) else ""


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else None
