"""The exceptions of Pippin.

    PippinError
    ├── BadInput      the user's input cannot be used; exit code 2, nothing was written
    ├── RunFailed     a run cannot go on; exit code 1, the message is the first cause
    ├── Interrupted   the user asked to stop; exit code 130
    └── Damaged       a file has changed since it was written; recovery names it and uses an older one

Each exception takes one string, so that it crosses process boundaries unchanged.
"""


class PippinError(Exception):
    """The base of Pippin's own errors, which are shown as one sentence and never as a traceback."""


class BadInput(PippinError):
    """A setting, file or argument cannot be used; the message names the file, the key, needed and came."""


class RunFailed(PippinError):
    """The run cannot go on. The message is the first cause, not the last symptom."""


class Interrupted(PippinError):
    """The user asked the run to stop."""


class Damaged(PippinError):
    """A stored file fails its checksum or ends early."""
