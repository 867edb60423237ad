"""The pipe of a process that runs foreign code, kept out of that code's reach as far as Python allows.

A reward function may evaluate a completion, and the completion may look for a way to answer for itself. So
a reply counts only with the nonce of its request, and nonce and descriptors are in no frame, module or
container that a running function can walk to: they belong to two closures that only a chain of C iterators
holds.

    requests() ──▶ answer() ──▶ send()      deque(map(send, map(answer, requests())))
    knows the     the foreign   knows the
    nonce         code's frames nonce

This holds against code that walks frames, modules and descriptors. It cannot hold against code that reads
the process's memory, and nothing keeps evaluated code from changing the function that evaluates it.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer requests until the pipe closes.

    From here on standard input is empty, and what is printed goes to standard error.
    """
    _hide()
    deque(_exchange(answer), maxlen=0)


def _exchange(answer: Callable[[bytes], bytes]) -> Iterator[None]:
    """The chain of iterators; when it runs, this function has returned and its frame is gone."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    write, process_id, leave, owner = os.write, os.getpid, os._exit, os.getpid()
    nonce = b""

    def lines() -> Iterator[bytes]:
        nonlocal nonce
        for line in requests:
            nonce, _, request = line.partition(b" ")
            yield request

    def send(reply: bytes) -> None:
        if process_id() != owner:  # a fork that came back from the foreign code
            leave(0)
        rest = b"%b %b\n" % (nonce, reply)
        while rest:
            rest = rest[write(replies, rest) :]

    return map(send, map(answer, lines()))


def _hide() -> None:
    """Refuse the calls that list every object, or the frames of every thread."""
    lists = {"gc.get_objects", "gc.get_referrers", "gc.get_referents"}
    hidden = frozenset({*lists, "sys._current_frames", "sys._current_exceptions"})

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event in hidden:
            raise RuntimeError(f"{event} cannot be used in a reward function")

    sys.addaudithook(refuse)
