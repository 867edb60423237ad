"""A checkpoint is all that was written, or it is named and the one before is used."""

import json
import shutil
from pathlib import Path

import pytest

from runtime import checkpoint
from runtime.errors import Damaged, RunFailed

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def write(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(bytes(range(200)))
    (folder / "optimizer.safetensors").write_bytes(b"moments" * 9)


@pytest.fixture
def root(tmp_path):
    for step in (1, 2, 10):
        checkpoint.publish(tmp_path, step, {"run": {"step": step}}, write)
    return tmp_path


def complaint(root: Path, step: int = 10) -> str:
    with pytest.raises(Damaged) as caught:
        checkpoint.read(root, step)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_published_is_read(root):
    found = checkpoint.read(root, 2)
    assert (found.step, found.state) == (2, {"run": {"step": 2}})
    assert (found.path / "weights.safetensors").read_bytes() == bytes(range(200))
    assert checkpoint.steps(root) == [1, 2, 10]
    assert sorted(p.name for p in found.path.iterdir()) == sorted(FILES)


def test_the_newest_is_the_highest_step(root):
    found, passed_over = checkpoint.newest(root)
    assert found and found.step == 10 and passed_over == []


def test_there_may_be_none(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    with pytest.raises(Damaged, match=r"manifest\.json: cannot be read"):
        checkpoint.read(tmp_path, 1)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def swapped(path: Path) -> None:
    """The file of another checkpoint, or another file of this one where theirs are equal."""
    theirs = path.parent.with_name("step-000002") / path.name
    if theirs.read_bytes() == path.read_bytes():
        theirs = path.with_name("state.json")
    shutil.copyfile(theirs, path)


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, removed, swapped])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_is_named_and_the_one_before_is_used(root, name, damage):
    damage(root / "step-000010" / name)
    sentence = complaint(root)
    if name == "manifest.json" and damage is flipped:
        assert str(root / "step-000010") in sentence  # the sum that it has now is of a good file
    else:
        assert sentence.startswith(f"{root / 'step-000010' / name}: ")
    found, passed_over = checkpoint.newest(root)
    assert found and found.step == 2
    assert passed_over == [sentence]


def test_a_flip_of_any_bit_of_a_manifest_is_noticed(root):
    path = root / "step-000010" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        with pytest.raises(Damaged):
            checkpoint.read(root, 10)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        "{}",
        '{"step": 10}',
        '{"step": 10, "files": 3}',
        '{"step": "x", "files": {}}',
        '{"step": 10, "files": {}}',
    ],
)
def test_a_manifest_of_another_form_is_damaged(root, content):
    (root / "step-000010" / "manifest.json").write_text(content)
    assert str(root / "step-000010") in complaint(root)


def test_if_all_are_damaged_all_are_named(root):
    for step in (1, 2, 10):
        (root / f"step-{step:06d}" / "state.json").write_text("{}")
    found, passed_over = checkpoint.newest(root)
    assert found is None
    assert [Path(s.partition(":")[0]).parent.name for s in passed_over] == [
        "step-000010", "step-000002", "step-000001",
    ]  # fmt: skip


def test_a_folder_under_a_foreign_name_is_not_taken_for_its_step(root):
    (root / "step-000010").rename(root / "step-000011")
    assert complaint(root, 11).endswith("is of step 10, not 11")


def test_publishing_a_step_again_replaces_it(root):
    checkpoint.publish(root, 10, {"run": {"step": 10, "again": True}}, write)
    assert checkpoint.read(root, 10).state["run"]["again"] is True
    assert len(list(root.iterdir())) == 3


def test_a_writer_that_fails_publishes_nothing(root):
    def broken(folder: Path) -> None:
        write(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFailed, match="the disk is full"):
        checkpoint.publish(root, 11, {}, broken)
    assert checkpoint.steps(root) == [1, 2, 10]
    assert len(list(root.iterdir())) == 3


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_cleared_away(root):
    for name in (".writing-000011-99999", ".trash-step-000001-99999"):
        shutil.copytree(root / "step-000010", root / name)
    found, passed_over = checkpoint.newest(root)
    assert found and found.step == 10 and passed_over == []
    checkpoint.publish(root, 11, {}, write)
    assert sorted(p.name for p in root.iterdir()) == [
        "step-000001", "step-000002", "step-000010", "step-000011",
    ]  # fmt: skip


def test_retiring_keeps_the_newest_and_the_named(root):
    for step in (11, 12):
        checkpoint.publish(root, step, {}, write)
    checkpoint.retire(root, 2, also=[2, 99])
    assert checkpoint.steps(root) == [2, 11, 12]
    assert len(list(root.iterdir())) == 3
    checkpoint.retire(root, 1)
    assert checkpoint.steps(root) == [12]


def test_the_manifest_has_the_sum_of_every_other_file(root):
    manifest = json.loads((root / "step-000002" / "manifest.json").read_bytes())
    assert sorted(manifest["files"]) == sorted(set(FILES) - {"manifest.json"})
