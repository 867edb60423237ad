"""The pipe of a process that runs foreign code, hidden from that code as far as Python allows.

A reward function may evaluate a completion, and the completion may try to send a reply itself. So a reply
counts only with the nonce of its request, and no frame, module, closure or container ever holds a nonce or
the pipe. They are in a chain of iterators made of C functions only, to which only the stack of `serve`
refers. The foreign code runs as one link of that chain.

    lines ──▶ nonce ────────────────────────▶ "nonce reply" ──▶ write
         └──▶ request ──▶ answer() ──▶ reply ──┘

This holds against code that walks frames, modules and descriptors, traces calls or handles signals. It
cannot hold against code that reads the process's memory, and nothing keeps evaluated code from changing
the very function that evaluates it.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat, tee
from operator import itemgetter


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answers requests until the pipe closes; a reply must fit into a pipe at once.

    From the call on, standard input is empty, and printed output goes to standard error.
    """
    _hide()
    deque(_exchange(answer), maxlen=0)


def _exchange(answer: Callable[[bytes], bytes]) -> Iterator[int | None]:
    """Returns the chain of iterators; by the time it runs, this function's frame is gone."""
    lines, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    for_nonce, for_request = tee(map(bytes.partition, lines, repeat(b" ")))
    requests = map(itemgetter(2), for_request)
    answered = zip(map(itemgetter(0), for_nonce), map(_once(answer), requests))
    return map(replies.write, map(b"%b %b\n".__mod__, answered))


def _once(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Returns `answer` for this process only: a forked copy that returns from the foreign code exits."""
    process_id, leave, owner = os.getpid, os._exit, os.getpid()

    def answer_here(request: bytes) -> bytes:
        reply = answer(request)
        if process_id() != owner:
            leave(0)
        return reply

    return answer_here


def _hide() -> None:
    """Blocks the calls that list every object, or the frames of every thread."""
    lists = {"gc.get_objects", "gc.get_referrers", "gc.get_referents"}
    hidden = frozenset({*lists, "sys._current_frames", "sys._current_exceptions"})

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event in hidden:
            raise RuntimeError(f"{event} cannot be used in a reward function")

    sys.addaudithook(refuse)
