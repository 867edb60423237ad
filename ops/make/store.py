"""The journal beside the file that is made: a question that was answered is never asked again.

`rows.jsonl` has `rows.jsonl.journal` (the framed records of `runtime.journal`): first what the recipe
was, then every answer, verdict and lasting failure as it came, and, once all is there, the sum. What may
pass (a time-out, a server that is down) is not written: the next call asks again. The rows are computed
again from it each time, so the file is a function of the journal, and published by one rename.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ops.make.records import Account, Answer, Begun, Failed, Judged
from runtime.errors import BadInput, Damaged
from runtime.journal import Journal, records
from runtime.tasks.prompt import Verdict

FORMAT = 1
SYNC_S = 1.0
"""The seconds of answers that a power cut may cost; a killed process costs none."""
ASK_AGAIN = "--again forgets what is there and begins anew"


class Identity(Struct, frozen=True, kw_only=True, tag="identity"):
    """Holds what decides the rows. A call with another identity does not continue the journal."""

    format: int = FORMAT
    recipe: dict[str, Any]
    """The recipe, flat, by dotted key."""
    files: dict[str, str]
    """The digests of the data and of the teacher."""
    replaces: bool = False
    """True if the file was there, and was to be made anew."""


class Done(Struct, frozen=True, kw_only=True, tag="done"):
    """Says that all answers were there; the file is published next."""

    account: Account
    sha256: str
    at: float


_Record = Identity | Answer | Failed | Begun | Judged | Done


class Store:
    """Holds the journal of one file for one process, which must `close` it."""

    def __init__(self, out: Path, identity: Identity, again: bool) -> None:
        """Begins or continues a journal. Raises BadInput if the recipe is another one, or another
        process has the journal.
        """
        self.path = journal_path(out)
        self.answers: dict[str, Answer] = {}
        self.failures: dict[str, Failed] = {}
        self.begun: dict[str, Begun] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.done: Done | None = None
        self._synced_at = 0.0
        fresh = not self.path.exists()
        if fresh and out.exists() and not again:
            raise BadInput(f"{out}: is there already; choose another file, or {ASK_AGAIN}")
        self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._open(out, identity, again)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Closes the journal. What was written lasts."""
        self.sync()
        self._journal.close()
        os.close(self._lock)

    def put(self, record: Answer | Failed | Begun | Judged | Done) -> None:
        """Writes a record down, and holds it from now on."""
        self._journal.append(msgspec.json.encode(record))
        self._take(record)
        if time.monotonic() - self._synced_at > SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Makes all that was written survive a power cut."""
        self._journal.sync()
        self._synced_at = time.monotonic()

    def has(self, name: str) -> bool:
        """Returns whether a question needs no further answer."""
        return name in self.answers or name in self.failures

    def _open(self, out: Path, identity: Identity, again: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{out}: another pippin make-data is making it now") from None
        before = None if again else self._read()
        may_replace = again or (before is not None and before.replaces)
        if before is not None and self._has_any:
            _check_same(out, before, identity)
        else:
            os.ftruncate(self._lock, 0)
            before = None
        if out.exists() and self.done is None and not may_replace:
            raise BadInput(f"{out}: is there already; choose another file, or {ASK_AGAIN}")
        self._journal = Journal(self.path)
        if before is None:
            fresh = msgspec.structs.replace(identity, replaces=out.exists())
            self._journal.append(msgspec.json.encode(fresh))

    @property
    def _has_any(self) -> bool:
        return bool(self.answers or self.failures or self.begun or self.done)

    def _read(self) -> Identity | None:
        """Takes in the records of the journal. Returns the recipe of that time, or None if there are no
        records.
        """
        before: Identity | None = None
        try:
            for payload in records(self.path):
                record = msgspec.json.decode(payload, type=_Record)
                if isinstance(record, Identity):
                    before = record
                else:
                    self._take(record)
        except (msgspec.MsgspecError, Damaged) as error:
            raise BadInput(
                f"{self.path}: is damaged, or no journal of pippin make-data ({error}); {ASK_AGAIN}"
            ) from None
        return before

    def _take(self, record: _Record) -> None:
        match record:
            case Answer():
                self.answers[record.name] = record
                self.begun.pop(record.name, None)
            case Failed():
                self.failures[record.name] = record
                self.begun.pop(record.name, None)
            case Begun():
                self.begun[record.name] = record
            case Judged():
                self.verdicts[record.name] = record.verdict
            case Done():
                self.done = record


@contextlib.contextmanager
def opened(out: Path, identity: Identity, again: bool) -> Iterator[Store]:
    """Opens the store for the time of a block."""
    store = Store(out, identity, again)
    try:
        yield store
    finally:
        store.close()


def journal_path(out: Path) -> Path:
    """Returns the path of a file's journal."""
    return out.with_name(f"{out.name}.journal")


def _check_same(out: Path, before: Identity, now: Identity) -> None:
    """Raises BadInput with the first difference between the recipe and the journal's recipe."""
    if before.format != now.format:
        raise BadInput(f"{out}: was begun by another version of pippin; {ASK_AGAIN}")
    for key in {**now.recipe, **before.recipe}:
        was, is_now = before.recipe.get(key), now.recipe.get(key)
        if was != is_now:
            raise BadInput(
                f"{out}: was begun with {key} = {_shown(was)}, the recipe has {_shown(is_now)}; "
                f"{ASK_AGAIN}"
            )
    for key in {**now.files, **before.files}:
        if before.files.get(key) != now.files.get(key):
            raise BadInput(f"{out}: what {key} holds has changed since it was begun; {ASK_AGAIN}")


def _shown(value: object) -> str:
    return "nothing" if value is None else msgspec.json.encode(value).decode()
