"""A run of a stranger's is code: nothing that executes its reward begins without --trust."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from configs import load
from configs.dump import to_toml
from ops.cli import main
from ops.trust import maker, require_trusted
from runtime.errors import BadInput
from runtime.rundir import RunDirectory
from tests.actors.tiny import settings
from tests.ops.another_user import UID, as_another_user, needs_root

SPEAKS = """
from pathlib import Path
Path({!r}).touch()


def reward(prompt, completion, row):
    return 1.0
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))


@pytest.fixture
def marker(tmp_path) -> Path:
    """A file that is there once the run's reward has been executed."""
    return tmp_path / "executed"


@pytest.fixture
def run(tmp_path, marker) -> RunDirectory:
    wanted = settings(tmp_path, reward=SPEAKS.format(str(marker)))
    run = RunDirectory(tmp_path / "runs", "run")
    run.create(to_toml(wanted), {"maker": maker(wanted)})
    return run


def refusal(run: RunDirectory) -> str:
    with pytest.raises(BadInput) as caught:
        require_trusted(run, False)
    assert "\n" not in str(caught.value)
    require_trusted(run, True)
    return str(caught.value)


def without_mark(run: RunDirectory) -> None:
    about = {name: value for name, value in run.about().items() if name != "maker"}
    (run.path / "run.json").write_text(json.dumps(about))


def test_our_own_is_trusted_also_after_it_has_been_renamed(run):
    require_trusted(run, False)
    run.path.rename(run.path.with_name("renamed"))
    require_trusted(RunDirectory(run.path.parent, "renamed"), False)


def test_one_that_another_machine_has_made_says_what_it_would_execute(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "other-home"))
    assert refusal(run) == (
        f"{run.path}: was made by another user or on another machine, or its recipe has changed since: "
        f"to go on would execute {load(run.recipe).task.reward} as you; "  # type: ignore[union-attr]
        "look at its recipe.toml, then say --trust"
    )


def test_a_mark_of_ours_is_worth_nothing_above_another_reward(run, tmp_path):
    theirs = run.recipe.read_text().replace(
        load(run.recipe).task.reward, str(tmp_path / "other.py")
    )  # type: ignore[union-attr]
    run.recipe.write_text(theirs)
    assert f"execute {tmp_path / 'other.py'} as you" in refusal(run)


def test_a_server_that_would_be_sent_a_key_is_named(run):
    text = '\n[algorithm.teachers.t]\nurl = "https://a.example/v1"\nkey_variable = "BANK_KEY"\n'
    run.recipe.write_text(f'[algorithm]\nname = "distill"\n{text}')
    said = "send prompts to https://a.example/v1, with the key in $BANK_KEY"
    assert f"to go on would {said};" in refusal(run)


def test_a_run_of_an_earlier_version_is_ours(run):
    without_mark(run)
    require_trusted(run, False)


@pytest.mark.parametrize("reward", ["reward.py", "../reward.py", "INSIDE/reward.py"])
def test_but_not_if_it_brings_its_reward_along(run, reward):
    without_mark(run)
    reward = reward.replace("INSIDE", str(run.path))
    run.recipe.write_text(f'[task]\nname = "jsonl"\nreward = "{reward}"\n')
    assert "names a reward file of its own" in refusal(run)


@pytest.mark.parametrize("recipe", ["task = [1]", "[algorithm]\nteachers = 3", "no TOML", "\0"])
def test_a_recipe_that_is_none_gives_no_traceback(run, recipe):
    run.recipe.write_text(recipe)
    assert refusal(run).startswith(f"{run.path}: ")


def test_a_home_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(BadInput, match=r"^\S+/file/home/machine: needed to know our own runs by"):
        maker(settings(tmp_path))


@pytest.mark.parametrize(
    "command", [["resume"], ["export", "OUT"], ["report"], ["report", "--against"]]
)
def test_no_command_executes_it_unasked(run, marker, tmp_path, monkeypatch, capsys, command):
    verb, *rest = command
    names = [run.name, *(word.replace("OUT", str(tmp_path / "out")) for word in rest)]
    if "--against" in rest:
        shutil.copytree(run.path, run.path.with_name("theirs"))
        (run.path.with_name("theirs") / "run.json").write_text(
            json.dumps({**run.about(), "maker": {"uid": os.geteuid(), "mark": "0" * 64}})
        )
        names.append("theirs")
    else:
        monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "other-home"))
    assert main([verb, *names, "--root", str(run.path.parent)]) == 2
    said = capsys.readouterr().err
    assert "then say --trust" in said and said.startswith("pippin: ") and said.count("\n") == 1
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_with_trust_the_command_goes_on_to_its_own_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "other-home"))
    root = ["--root", str(run.path.parent)]
    assert main(["export", run.name, str(tmp_path / "out"), "--trust", *root]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


@needs_root
def test_one_that_belongs_to_another_user_is_theirs_whatever_it_says(run):
    os.chown(run.path, UID, UID)
    assert refusal(run).startswith(f"{run.path}: belongs to another user (uid {UID}): ")


@needs_root
def test_one_that_another_user_keeps_private_is_named_without_a_traceback():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        run = RunDirectory(Path(folder), "run")
        run.create("", {})
        said = as_another_user(lambda: run.read_status().state)
    assert said == f"BadInput: {run.path}: cannot be read: it is another user's"
