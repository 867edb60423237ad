"""Renders chat templates in a separate process, with limits on time and length.

A template comes with a checkpoint, so it is an untrusted program, and even in a sandbox it can loop for ever
or fill the memory. A process can be killed whatever it does. One process serves all templates and is started
at the first rendering, which takes about 0.15 s; each further rendering takes 0.1 ms more than a plain call.

    text = render(template, messages, {"bos_token": "<s>"})    # raises Refused with the reason
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.killable import Died, Forged, Killable, OutOfMemory, TimedOut

MODULE = "runtime.template_child"
START_S = 60.0
RENDER_S = 10.0
"""Time limit of one prompt, in seconds; a template takes a millisecond."""
OWN_CHARACTERS = 1 << 16
"""Characters that a template may add to the messages; the longest add about 10,000 characters of tools."""
REPEATS = 4
"""Number of times that a template may print the messages."""
MAX_TEMPLATE_CHARACTERS = 1 << 20


class Refused(Exception):
    """The template gives no prompt; the message has the reason."""


class TemplateProcess:
    """The rendering process, used by one thread at a time; it is started again after it was killed."""

    def __init__(self) -> None:
        self._process: Killable | None = None
        self._numbers: dict[str, int] = {}
        """Numbers of the templates that the process has, so that each text is sent once."""
        self._lock = threading.Lock()

    def render(
        self, template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]
    ) -> str:
        """Returns the messages as the template writes them. Raises Refused."""
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise Refused(
                f"has {len(template):,} characters, of {MAX_TEMPLATE_CHARACTERS:,} at most"
            )
        size = sum(len(value) for message in messages for value in message.values())
        limit = OWN_CHARACTERS + REPEATS * size
        request = {"variables": {"messages": messages, **variables}, "limit": limit}
        with self._lock:
            reply = self._ask(template, request, limit)
        match reply:
            case {"text": str(text)}:
                return text
            case {"refused": str(reason)}:
                raise Refused(reason)
        self.close()
        raise Refused("answered out of turn")

    def close(self) -> None:
        """Ends the process; the next rendering starts another one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._process = None
        self._numbers.clear()

    def _ask(self, template: str, request: dict[str, Any], limit: int) -> Any:
        try:
            if self._process is None or not self._process.alive():
                self._end()
                self._process = _started()
            request["template"] = None if template in self._numbers else template
            request["number"] = self._numbers.setdefault(template, len(self._numbers))
            return self._process.ask(request, RENDER_S, 6 * limit + 1024)
        except TimedOut:
            self._end()
            raise Refused(f"did not end within {RENDER_S:g} s") from None
        except (Died, Forged, OutOfMemory) as cause:
            self._end()
            raise Refused(f"ended its process: {cause}") from None


def _started() -> Killable:
    """Returns a process that has imported what it needs, so that a template's time is its own."""
    process = Killable(MODULE, "")
    process.ask({"number": -1, "template": "", "variables": {}, "limit": 0}, START_S)
    return process


_shared = TemplateProcess()


def render(
    template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]
) -> str:
    """Returns the messages as the template writes them, rendered by the shared process. Raises Refused."""
    return _shared.render(template, messages, variables)


def close() -> None:
    """Ends the shared process, when nothing more is rendered for a while."""
    _shared.close()
