"""A second user of the machine, for tests that run as root; elsewhere they are skipped with a sentence.

said = as_another_user(lambda: str(temp_folder()))
"""

import os
from collections.abc import Callable

import pytest

UID = 61_234
"""Nobody's, on any machine that we know."""
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to be two users of the machine one after another"
)


def as_another_user(work: Callable[[], str]) -> str:
    """Returns what `work` gives in a child process of that user, or the error's text."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(UID)
            os.setuid(UID)
            said = work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said
