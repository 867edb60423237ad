"""The end of a command: its exit code, and one sentence on stderr where there is something to report.

Exit codes: 0 fine, 1 failure, 2 bad input, 130 interrupted. A traceback is a mistake of ours.
"""

import os
import sys
from collections.abc import Callable

from configs.errors import SettingsError
from ops.terminal import say
from runtime.errors import BadInput, Interrupted, PippinError
from runtime.plain_text import printable_lines

FINE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def exit_code(body: Callable[[], int]) -> int:
    """Runs `body`. An error of Pippin's is printed, and turned into its exit code."""
    try:
        return body()
    except (BadInput, SettingsError) as error:
        return _say(error, BAD_INPUT)
    except Interrupted as error:
        return _say(error, INTERRUPTED)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except PippinError as error:
        return _say(error, FAILED)
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE


def _say(what: object, code: int) -> int:
    """Prints an error and returns its exit code. Foreign text in its sentence cannot steer the
    terminal, and is bounded.
    """
    say(f"pippin: {printable_lines(str(what))}", err=True)
    return code
