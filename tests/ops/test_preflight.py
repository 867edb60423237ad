"""What is known to be wrong before a run is said before anything is written."""

from pathlib import Path

import pytest

from ops.preflight import check_name, check_run, check_same_model
from runtime.checkpoint_files import fingerprint, inspect
from runtime.errors import BadInput
from runtime.rundir import RunDirectory
from tests.actors.tiny import checkpoint, settings


def test_a_reward_that_gives_no_number_is_refused(tmp_path: Path):
    nothing = "def reward(prompt, completion, row):\n    return None\n"
    with pytest.raises(
        BadInput, match=r"reward-\w+\.py: needed a finite number, got NoneType None"
    ):
        check_run(settings(tmp_path, reward=nothing), tmp_path)
    check_run(settings(tmp_path), tmp_path)


def test_the_answers_of_an_evaluation_must_fit_the_context_too(tmp_path: Path):
    wanted = settings(tmp_path, eval={"prompts": 2, "max_new_tokens": 64})
    with pytest.raises(BadInput, match=r"^eval\.max_new_tokens: 64 leaves no room .* 64 tokens$"):
        check_run(wanted, tmp_path)


def test_a_taken_name_is_refused_and_nothing_is_written(tmp_path: Path):
    (tmp_path / "one").mkdir()
    with pytest.raises(BadInput, match="a run 'one' is there already"):
        check_name(tmp_path, "one")
    check_name(tmp_path / "new", "one")
    assert not (tmp_path / "new").exists()


def test_another_checkpoint_in_the_place_of_the_first_is_noticed(tmp_path: Path):
    wanted = settings(tmp_path)
    run = RunDirectory(tmp_path / "runs", "one")
    run.create("", {"model": fingerprint(inspect(wanted.model.path))})
    check_same_model(run, wanted)
    other = settings(
        tmp_path, model={"path": str(checkpoint(tmp_path / "other", num_hidden_layers=2))}
    )
    with pytest.raises(BadInput, match="is not the checkpoint any more that one began with"):
        check_same_model(run, other)
