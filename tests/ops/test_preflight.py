"""A mistake that can be known before a run is reported before anything is written."""

import json
from pathlib import Path

import pytest

from configs.algorithms.distillation import Distill
from ops.preflight import check_name, check_run, check_same_model, with_model
from runtime.checkpoint_files import fingerprint, inspect
from runtime.errors import BadInput
from runtime.rundir import RunDirectory
from tests.actors.tiny import checkpoint, distilled, settings, teacher


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


def test_a_teacher_of_the_students_tokens_passes(tmp_path: Path):
    check_run(distilled(tmp_path), tmp_path)


def test_a_teacher_of_other_tokens_gives_text_only(tmp_path: Path):
    other = checkpoint(tmp_path / "other")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    teachers = {"big": {"name": "local", "path": str(other)}}
    wanted = distilled(tmp_path, algorithm__teachers=teachers)
    with pytest.raises(BadInput) as caught:
        check_run(wanted, tmp_path)
    for folder in (other, tmp_path / "model"):
        assert str(folder / "tokenizer.json") in str(caught.value)
    assert 'algorithm.signal.name = "text"' in str(caught.value)
    text = {"algorithm__learn_from": {"name": "teacher"}, "algorithm__signal": {"name": "text"}}
    check_run(distilled(tmp_path, algorithm__teachers=teachers, **text), tmp_path)


def test_a_teacher_that_is_missing_or_too_small_is_refused(tmp_path: Path):
    def refused(words: str, **changes):
        with pytest.raises(BadInput, match=words):
            check_run(distilled(tmp_path, **changes), tmp_path)

    nobody = {"big": {"name": "local", "path": str(tmp_path / "nobody")}}
    refused("nobody", algorithm__teachers=nobody)
    refused(r"algorithm\.signal\.k = 103 exceeds the 102 tokens",
            algorithm__signal={"name": "top_k", "k": 103})  # fmt: skip
    short = checkpoint(tmp_path / "short", max_position_embeddings=9)
    refused(r"teacher big's context leaves 3",
            algorithm__teachers={"big": {"name": "local", "path": str(short)}})  # fmt: skip


def test_a_teacher_that_ends_otherwise_is_told_of(tmp_path: Path):
    wanted = distilled(tmp_path)
    assert check_run(wanted, tmp_path) == []
    path = teacher(tmp_path) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 7]}))
    (said,) = check_run(wanted, tmp_path)
    assert "algorithm.teachers.big ends answers with tokens 2, 7, the student with 2:" in said


def test_a_host_that_is_no_name_is_refused(tmp_path: Path):
    api = {"name": "endpoint", "url": "http://127.0.0..1:8080/v1", "model": "m"}
    text = {"algorithm__learn_from": {"name": "teacher"}, "algorithm__signal": {"name": "text"}}
    with pytest.raises(BadInput, match=r"teachers\.api"):
        check_run(distilled(tmp_path, algorithm__teachers={"api": api}, **text), tmp_path)


def test_an_endpoint_that_is_down_or_lacks_its_key_is_refused(tmp_path: Path, monkeypatch):
    text = {"algorithm__learn_from": {"name": "teacher"}, "algorithm__signal": {"name": "text"}}
    api = {"name": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m"}
    with pytest.raises(BadInput, match=r"teachers\.api\.url: needed a server at 127\.0\.0\.1:9"):
        check_run(distilled(tmp_path, algorithm__teachers={"api": api}, **text), tmp_path)
    keyed = api | {"key_variable": "PIPPIN_TEST_KEY"}
    monkeypatch.delenv("PIPPIN_TEST_KEY", raising=False)
    with pytest.raises(BadInput, match=r"teachers\.api: .*needed a key in \$PIPPIN_TEST_KEY"):
        check_run(distilled(tmp_path, algorithm__teachers={"api": keyed}, **text), tmp_path)


def test_the_folders_of_teachers_take_the_place_of_their_names(tmp_path: Path):
    wanted = distilled(tmp_path)
    found = with_model(wanted, tmp_path / "model", {"big": tmp_path / "elsewhere"})
    assert isinstance(found.algorithm, Distill)
    assert found.algorithm.teachers["big"].path == str(tmp_path / "elsewhere")
