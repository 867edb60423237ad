"""One name is one run; what is no run, or one of another version, is named."""

import json
import os

import pytest

from runtime.journal import Journal
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory, free_name, runs
from runtime.status import Machine, Status
from tests.runtime.complaints import complaint


def test_a_new_run_has_its_folders_its_recipe_and_what_it_was_made_with(run):
    assert all(folder.is_dir() for folder in (run.weights, run.checkpoints, run.logs))
    assert run.recipe.read_text() == "seed = 1\n"
    made = json.loads((run.path / "run.json").read_bytes())
    assert (made["schema_version"], made["name"], made["argv"]) == (1, "demo", ["launch"])
    run.require()


def test_a_name_in_use_is_refused_and_left_alone(run):
    before = sorted(p.name for p in run.path.iterdir())
    sentence = complaint(RunDirectory(run.path.parent, "demo").create, "other", {})
    assert sentence.startswith("--name: a run 'demo' is there already (")
    assert run.recipe.read_text() == "seed = 1\n"
    assert sorted(p.name for p in run.path.iterdir()) == before


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../a", "a b", "ä", "a\n", "a\0", "x" * 101, "x" * 300],
)
def test_a_name_is_a_plain_file_name(tmp_path, name):
    sentence = complaint(RunDirectory(tmp_path, name).create, "", {})
    assert sentence.startswith("--name: needs letters, digits, '-', '_' and '.'")
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_not_a_name_in_use(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        sentence = complaint(RunDirectory(root, "demo").create, "", {})
        assert sentence.startswith(f"--root: {root} cannot be written: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_root_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    sentence = complaint(RunDirectory(tmp_path / "runs", "demo").create, "", {})
    assert sentence == f"--root: {tmp_path / 'runs'} cannot be written: Permission denied"


def test_what_is_no_run_is_answered_with_the_runs_there_are(run, tmp_path):
    sentence = complaint(RunDirectory(run.path.parent, "dmeo").require)
    assert sentence == f"no run 'dmeo' in {run.path.parent}; there are demo"
    assert complaint(RunDirectory(tmp_path / "none", "x").read_status).startswith("no run 'x'")


def test_a_newer_schema_is_refused_by_its_number(run):
    path = run.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema_version": 2}))
    assert complaint(run.require) == (
        f"{path}: schema version 2 is newer than this Pippin knows (1)"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": null}'])
def test_a_damaged_run_json_is_named(run, content):
    (run.path / "run.json").write_text(content)
    assert complaint(run.read_status).startswith(f"{run.path / 'run.json'}: is damaged")


def test_runs_are_listed_and_free_names_are_free(run, tmp_path):
    root = run.path.parent
    RunDirectory(root, "grpo-1").create("", {})
    (root / "no-run").mkdir()
    assert {path.name for path in runs(root)} == {"demo", "grpo-1"}
    assert runs(tmp_path / "none") == []
    assert free_name(root, "grpo") == "grpo-2"
    assert free_name(root, "sft") == "sft-1"


def test_a_run_is_its_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        run = RunDirectory(tmp_path / "runs", "demo")
        run.create("seed = 1\n", {})
        run.ask_to_pause(PauseRequest(by="user", reason="x"))
        run.write_status(Status(name="demo"))
        run.write_machine(Machine())
        run.append_line("metrics.jsonl", {"step": 1})
        Journal(run.trajectories)
        run.lock()
        run.unlock()
    finally:
        os.umask(before)
    open_to_others = [p.name for p in (run.path, *run.path.rglob("*")) if p.stat().st_mode & 0o077]
    assert open_to_others == []
