"""`pippin make-data`: makes a file of rows from a recipe, even if it is interrupted on the way.

    identity ─▶ store ─▶ ask ⇄ judge ─▶ choose ─▶ de-duplicate ─▶ write aside ─▶ rename
                (all that was asked before is in it)

Everything after the store is a pure function of the store, in the order of the prompts and not of the
answers: the same recipe and seed make the same rows, however often the command was stopped on the way.
"""

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from configs.data_schema import DataSettings, Magpie, Near
from configs.tasks import Gsm8k, Jsonl
from configs.teachers import EndpointTeacher, LocalTeacher
from ops.make import checkpoint, choose, plan, rows
from ops.make.progress import Progress
from ops.make.records import Account, account
from ops.make.stop import Stop
from ops.make.store import Done, Identity, Store, opened
from ops.make.teacher import GO_ON, Desk, Teacher
from ops.make.work import Found, Work
from runtime.durable import ORDINARY_FILE, clear_leftovers, sha256_file, write_file
from runtime.errors import BadInput, Interrupted
from runtime.tasks.open import open_task

KNOBS = {
    "teacher.concurrency", "teacher.attempts", "teacher.timeout_s", "teacher.key_variable",
    "sampling.slots", "verifier.timeout_s", "verifier.max_failures", "max_failures",
}  # fmt: skip
"""The settings that change how answers are obtained, not which: they may differ from one call to the next."""


class Made(msgspec.Struct, frozen=True):
    """Holds what there is at the end."""

    account: Account
    fresh: bool
    """True if the file was made in this call; else it was there already."""
    passing: dict[str, int]
    """The failures among those counted that another try may not have, by kind."""


def make(
    settings: DataSettings, out: Path, *, again: bool = False, progress: Progress | None = None
) -> Made:
    """Makes the file, or continues it. No file is written where not one row is kept.

    Raises BadInput, with nothing asked or written, for what can be known to be wrong; RunFailed when
    teacher or verifier fail too often; Interrupted for Ctrl-C.
    """
    check_place(out)
    if isinstance(settings.dedup, Near):
        rows.dedup_settings(settings.dedup, settings.seed)
    folder = _folder(settings)
    progress, stop = progress or Progress(), Stop()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.listening())
        stack.callback(progress.end)
        remote = _remote(settings)
        stack.enter_context(_without(getattr(settings.teacher, "key_variable", "")))
        identity = identify(settings, folder)
        task = None
        if settings.task is not None:
            task = open_task(settings.task, settings.seed, settings.verifier.timeout_s)
            stack.callback(task.close)
        named = plan.questions(settings, plan.prompts(settings, task)) if task else {}
        store = stack.enter_context(opened(out, identity, again))
        if store.done is not None and out.exists():
            return Made(store.done.account, False, {})
        desk = Desk(store, progress, stop, settings.max_failures)
        try:
            found = Work(settings, task, named, folder, desk, remote).run()
            return _publish(settings, out, desk, identity, found)
        except KeyboardInterrupt:
            raise Interrupted(_stopped(store, out)) from None


def _publish(
    settings: DataSettings, out: Path, desk: Desk, identity: Identity, found: Found
) -> Made:
    asked, candidates, outcomes = found
    drafts, gone = choose.choose(settings, candidates)
    outcomes = outcomes | gone
    drafts, gone = rows.distinct(drafts, settings)
    outcomes |= gone
    drafts, gone = choose.capped(settings, drafts)
    outcomes |= gone
    lines, gone = rows.finished(drafts, settings, _about(settings, identity))
    outcomes |= gone
    summed = account(asked, outcomes, len(lines))
    assert summed.adds_up
    made = Made(summed, True, dict(Counter(desk.passing.values())))
    if lines:
        content = rows.encoded(lines)
        digest = hashlib.sha256(content).hexdigest()
        # The journal comes before the file: a file without a journal was not made by this command.
        desk.store.put(Done(account=summed, sha256=digest, at=time.time()))
        desk.store.sync()
        write_file(out, content, mode=ORDINARY_FILE)
    return made


# ── before anything is asked ─────────────────────────────────────────────────────────────────────


def check_place(out: Path) -> None:
    """Raises BadInput for a file that could not be written."""
    folder = out.absolute().parent
    if not folder.is_dir():
        raise BadInput(f"--out: needs a folder that is there, {folder} is not")
    if out.is_dir():
        raise BadInput(f"--out: needs the name of a file, {out} is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"--out: {folder} cannot be written")
    clear_leftovers(folder)


def identify(settings: DataSettings, folder: Path | None) -> Identity:
    """Returns all that decides the rows: the recipe, and what its files hold. Raises BadInput."""
    recipe = {k: v for k, v in _flat(msgspec.to_builtins(settings)) if k not in KNOBS}
    files: dict[str, str] = {}
    task = settings.task
    if isinstance(task, Jsonl | Gsm8k):
        for name in ("train", "eval", "reward"):
            path = Path(getattr(task, name, ""))
            if path.is_file():  # the task reports a missing file
                files[f"task.{name}"] = sha256_file(path)
    if folder is not None:
        files["teacher"] = checkpoint.digest(folder)
    return Identity(recipe=recipe, files=files)


def _folder(settings: DataSettings) -> Path | None:
    teacher = settings.teacher
    if not isinstance(teacher, LocalTeacher):
        return None
    folder = checkpoint.find(teacher.path)
    if isinstance(settings.method, Magpie):
        from ops.make.local import require_user_turn

        require_user_turn(teacher, folder)
    return folder


def _remote(settings: DataSettings) -> Teacher | None:
    if not isinstance(settings.teacher, EndpointTeacher):
        return None
    from ops.make.endpoint import Remote

    return Remote(settings.teacher)


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Removes the key from the environment within the block: the client has it, and a reward's process
    must not find it.
    """
    held = os.environ.pop(variable, None) if variable else None
    try:
        yield
    finally:
        if held is not None:
            os.environ[variable] = held


def _about(settings: DataSettings, identity: Identity) -> dict[str, str]:
    """Returns a row's facts about the teacher."""
    match settings.teacher:
        case LocalTeacher(path=path):
            return {"name": "local", "path": path, "digest": identity.files["teacher"]}
        case EndpointTeacher(url=url, model=model):
            return {"name": "endpoint", "url": url, "model": model}
        case recorded:
            return {"name": "recorded", "by": recorded.by}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _stopped(store: Store, out: Path) -> str:
    without = " (without --again)" if out.exists() else ""
    return f"stopped with {len(store.answers):,} answers in {store.path.name}; {GO_ON}{without}"
