"""Where Pippin keeps what outlives a run: seedlings, and the lock of the GPU."""

import os
from pathlib import Path


def home() -> Path:
    """`$PIPPIN_HOME`, or ~/.pippin. Not created here."""
    return Path(os.environ.get("PIPPIN_HOME") or "~/.pippin").expanduser().absolute()
