"""`pippin launch`: checks everything, claims the name, then runs here or in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from configs import SettingsError, load
from configs.dump import to_toml
from configs.load import NOT_FOLDERS
from configs.schema import Settings
from configs.teachers import LocalTeacher
from ops.attend import DETACHED, command
from ops.check import memory_doubt
from ops.preflight import check_name, check_run, origin, with_model
from ops.terminal import say
from ops.trust import maker
from runtime.blas import load_blas
from runtime.clock import Deadline
from runtime.errors import BadInput, RunFailed
from runtime.home import home
from runtime.rundir import RunDirectory, free_name

START_S = 60.0


def prepare(
    recipe: str, overrides: Sequence[str], name: str | None, root: Path
) -> tuple[RunDirectory, Settings]:
    """Returns a run directory that is ready to be run. Raises BadInput, with nothing written, for
    anything that can be known to be wrong now.
    """
    try:
        settings = load(recipe, overrides)
    except SettingsError as error:
        raise BadInput(str(error)) from None
    stem = Path(recipe).stem
    chosen = name or free_name(root, stem)
    check_name(root, chosen)
    slow = load_blas(settings.exact) == "reference" and not settings.exact
    if slow:
        say(
            "OpenBLAS is not installed: MLX computes with its reference BLAS, about 15 times slower",
            "  (`make setup` installs it; Debian: apt-get install libopenblas0-pthread)",
            err=True,
        )
    settings = with_model(settings, find_checkpoint(settings), find_teachers(settings))
    doubts = check_run(settings, root)
    if doubt := memory_doubt(settings):
        say(doubt, err=True)
    for doubt in doubts:
        say(f"note: {doubt}", err=True)
    about = {
        "pippin": version("pippin"),
        "recipe": Path(recipe).name,
        "maker": maker(settings),
        **origin(settings),
    }
    while True:
        run = RunDirectory(root, chosen)
        try:
            run.create(to_toml(settings), about)
            return run, settings
        except BadInput:  # another launch has just taken the free name
            if name or not run.path.exists():
                raise
            chosen = free_name(root, stem)


def find_checkpoint(settings: Settings) -> Path:
    """Returns the checkpoint's folder; the seedling is raised if it is asked for and not there yet."""
    return _found(settings.model.path)


def find_teachers(settings: Settings) -> dict[str, Path]:
    """Returns the folders of a distillation's local teachers, by name. A seedling is raised if need be."""
    found: dict[str, Path] = {}
    for name, teacher in settings.facts.teachers.items():
        if isinstance(teacher, LocalTeacher):
            try:
                found[name] = _found(teacher.path)
            except BadInput as error:
                reason = str(error).removeprefix("model.path: ")
                raise BadInput(f"algorithm.teachers.{name}.path: {reason}") from None
    return found


def _found(path: str) -> Path:
    if path not in NOT_FOLDERS:
        from policies.load import locate

        return locate(path)
    from ops.seed import seedling_folder

    folder = seedling_folder(name=path)
    if not folder.is_dir():
        how_long = "some seconds" if path == "seedling" else "a minute or two"
        say(f"raising the {path} (a small model, {how_long}, only this once)", err=True)
        # In a process of its own: the warm start imports Ray, whose environment is not set here yet.
        command = ["ops.cli", "seed"] if path == "seedling" else ["ops.seed", path]
        raised = subprocess.run(
            [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, check=False
        )
        if raised.returncode:
            raise RunFailed(f"the {path} could not be raised; try: pippin seed")
    return folder


def detach(run: RunDirectory) -> int:
    """Starts the run in a process of its own that outlives this terminal. Returns its pid once it has
    the run.

    Raises RunFailed if the process ends before, BadInput if another process was first.
    """
    with (run.logs / "supervisor.log").open("ab") as log:
        child = subprocess.Popen(
            command(run, DETACHED),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={
                **os.environ,
                "PIPPIN_HOME": str(home()),
            },  # it may be relative to the present folder
            cwd=os.path.abspath(os.sep),
        )
    deadline = Deadline(START_S)
    while not deadline.expired():
        if child.poll() is not None:
            break
        if run.locked() and run.holder() == child.pid:
            return child.pid
        time.sleep(0.1)
    if child.poll() is not None and run.locked():
        raise BadInput(f"{run.path}: another process is running it (pid {run.holder() or '?'})")
    tail = (run.logs / "supervisor.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise RunFailed(f"the run did not start: {' '.join(tail) or 'no word from its process'}")
