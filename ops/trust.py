"""Decides whose run it is. Resuming or measuring a run executes the reward file that it names, so a run that
another user or another machine has made is resumed only with `--trust`.

run.json names the maker of a run: the user's id, and a mark that only this Pippin's home can make, over all
of the recipe that reaches beyond the run. A stranger who has seen a mark cannot put another reward under it.
A run without a mark is the user's own if its files belong to the user and the code that it would execute is
named by an absolute path outside of the run.
"""

import hashlib
import hmac
import json
import os
import secrets
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from configs.schema import Settings
from configs.tasks import Jsonl
from configs.teachers import EndpointTeacher
from runtime.durable import write_new
from runtime.errors import BadInput
from runtime.home import home, private_folder
from runtime.rundir import RunDirectory

MACHINE = "machine"
"""The file in Pippin's home with which marks are made: random, and never shown."""
KEY_BYTES = 32


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Lists what a recipe reaches beyond the run: code that is executed, servers that are sent a key."""

    reward: str = ""
    endpoints: dict[str, str] = {}
    """The variables of the environment, by address."""

    def sentence(self) -> str:
        """Returns what would be done for the run, as the end of a sentence."""
        does = [f"execute {self.reward} as you"] if self.reward else []
        does += [
            f"send prompts to {url}" + (f", with the key in ${variable}" if variable else "")
            for url, variable in self.endpoints.items()
        ]
        return " and ".join(does) or "execute no code that it names"


def maker(settings: Settings) -> dict[str, Any]:
    """Returns the entry of run.json that names the maker of a run with these settings."""
    return {"uid": os.geteuid(), "mark": _mark(_reach_of(settings), os.geteuid())}


def require_trusted(run: RunDirectory, trusted: bool) -> None:
    """Raises BadInput for a run that another user or machine has made, unless it is trusted."""
    run.require()
    if trusted:
        return
    try:
        reach = _reach(tomllib.loads(run.recipe.read_text()))
        stranger = _stranger(run, reach)
    except (
        OSError,
        ValueError,
        RecursionError,
    ):  # the command itself reports what is wrong with the file
        reach, stranger = Reach(), "cannot be read"
    if stranger:
        raise BadInput(
            f"{run.path}: {stranger}: to go on would {reach.sentence()}; "
            "look at its recipe.toml, then say --trust"
        )


def _stranger(run: RunDirectory, reach: Reach) -> str:
    """Returns why the run is a stranger's; "" if it is the user's own."""
    for path in (run.path, run.path / "run.json", run.recipe):
        if (owner := os.lstat(path).st_uid) != os.geteuid():
            return f"belongs to another user (uid {owner})"
    made = run.about().get("maker")
    if isinstance(made, dict):
        mark, uid = str(made.get("mark")), os.geteuid()
        if made.get("uid") == uid and hmac.compare_digest(
            mark.encode(), _mark(reach, uid).encode()
        ):
            return ""
        return "was made by another user or on another machine, or its recipe has changed since"
    outside = not reach.reward or (
        os.path.isabs(reach.reward) and not Path(reach.reward).is_relative_to(run.path.absolute())
    )
    return "" if outside else "names a reward file of its own, as no run does that Pippin made"


def _reach_of(settings: Settings) -> Reach:
    task, teachers = settings.task, settings.facts.teachers.values()
    remote = [teacher for teacher in teachers if isinstance(teacher, EndpointTeacher)]
    return Reach(
        reward=task.reward if isinstance(task, Jsonl) else "",
        endpoints={teacher.url: teacher.key_variable for teacher in remote},
    )


def _reach(recipe: dict[str, Any]) -> Reach:
    """Returns the reach of a recipe as it is written, which may be anything."""
    task, algorithm = _table(recipe.get("task")), _table(recipe.get("algorithm"))
    teachers = [_table(teacher) for teacher in _table(algorithm.get("teachers")).values()]
    return Reach(
        reward=str(task.get("reward", "")),
        endpoints={
            str(teacher["url"]): str(teacher.get("key_variable", ""))
            for teacher in teachers
            if "url" in teacher
        },
    )


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mark(reach: Reach, uid: int) -> str:
    content = json.dumps([uid, msgspec.to_builtins(reach)], sort_keys=True)
    return hmac.new(_key(), content.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    """Returns a secret of this Pippin's home. It is made when it is first needed."""
    path = home() / MACHINE
    try:
        private_folder(path.parent)
        if not path.exists():
            aside = path.with_name(f".{MACHINE}.{secrets.token_hex(4)}")
            write_new(aside, secrets.token_bytes(KEY_BYTES))
            try:
                os.link(aside, path)
            except FileExistsError:  # another launch was first: its file counts
                pass
            except OSError:  # a volume without links
                os.replace(aside, path)
            aside.unlink(missing_ok=True)
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: needed to know our own runs by, cannot be read or made: {error.strerror}; "
            "PIPPIN_HOME names another folder"
        ) from None
