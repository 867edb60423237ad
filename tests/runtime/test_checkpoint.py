"""A checkpoint holds all that was written, or its damage is named and the one before is used."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from runtime import checkpoint, durable
from runtime.errors import BadInput, Damaged, RunFailed

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def write(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(bytes(range(200)))
    (folder / "optimizer.safetensors").write_bytes(b"moments" * 9)


@pytest.fixture
def root(tmp_path):
    for step in (1, 2, 10):
        checkpoint.publish(tmp_path, step, {"run": {"step": step}}, write)
    return tmp_path


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def spoil(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


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
    with pytest.raises(Damaged, match=r": has no checkpoint of step 1$"):
        checkpoint.read(tmp_path, 1)
    checkpoint.retire(tmp_path, 1)
    checkpoint.set_aside(tmp_path, 0, 0)
    (tmp_path / "step-000001").mkdir()
    with pytest.raises(Damaged, match=r"manifest\.json: cannot be read: No such file"):
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
        '{"step": 10, "revision": 0, "files": {}, "sha256": 1}',
        '{"step": 10, "revision": 0, "files": {}, "sha256": ""}',
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


@pytest.mark.parametrize("foreign", ["step-000011", "step-000010.1"])
def test_a_folder_under_a_foreign_name_is_not_taken_for_its_step(root, foreign):
    (root / "step-000010").rename(root / foreign)
    sentence = complaint(root, checkpoint.steps(root)[-1])
    assert sentence.endswith(f"manifest.json: is of step-000010, not of {foreign}")


@pytest.mark.parametrize(
    "name",
    ["step-10", "step-000010.0", "step-0000010", "step-000010 2", "step-x", "step-000010.1.2"],
)
def test_a_name_that_publishing_does_not_give_is_no_checkpoint(root, name):
    (root / "step-000010").rename(root / name)
    assert checkpoint.steps(root) == [1, 2]


def test_publishing_a_step_again_is_a_revision_and_leaves_what_was_published(root):
    before = {p.name: p.read_bytes() for p in (root / "step-000010").iterdir()}
    for again in (1, 2):
        made = checkpoint.publish(root, 10, {"run": {"step": 10, "again": again}}, write)
        assert made.path == root / f"step-000010.{again}"
    found = checkpoint.read(root, 10)
    assert (found.step, found.revision) == (10, 2) and found == made
    assert found.state["run"]["again"] == 2
    assert checkpoint.newest(root)[0] == found
    assert checkpoint.steps(root) == [1, 2, 10]
    assert {p.name: p.read_bytes() for p in (root / "step-000010").iterdir()} == before


def test_a_damaged_revision_gives_way_to_the_one_before_but_is_not_read_in_its_place(root):
    spoil(checkpoint.publish(root, 10, {}, write).path)
    assert "step-000010.1/weights.safetensors" in complaint(root)
    found, passed_over = checkpoint.newest(root)
    assert found and (found.step, found.revision) == (10, 0) and len(passed_over) == 1


def test_the_state_is_given_back_without_the_version_that_was_written_beside_it(root):
    path = root / "step-000010" / "state.json"
    assert json.loads(path.read_bytes())["schema_version"] == checkpoint.SCHEMA_VERSION == 1
    assert "schema_version" not in checkpoint.read(root, 10).state


def rewrite(folder: Path, state: bytes) -> None:
    """What another Pippin would have written: another state, and a manifest that vouches for it."""
    (folder / "state.json").write_bytes(state)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["state.json"] = hashlib.sha256(state).hexdigest()
    del manifest["sha256"]
    told = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(told).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))


def test_a_newer_version_is_refused_with_both_named_and_not_passed_over(root):
    rewrite(root / "step-000010", b'{"schema_version": 2}')
    path = re.escape(str(root / "step-000010" / "state.json"))
    for attempt in (lambda: checkpoint.read(root, 10), lambda: checkpoint.newest(root)):
        with pytest.raises(BadInput, match=rf"^{path}: schema version 2 is newer .* knows \(1\)$"):
            attempt()


@pytest.mark.parametrize(
    "state",
    [
        b"{}", b"[]", b"null", b"7", b'"x"', b"", b"not json", b"\xff\xfe{}", b"[" * 100_000,
        b'{"schema_version": 0}', b'{"schema_version": -3}', b'{"schema_version": true}',
        b'{"schema_version": "1"}', b'{"schema_version": 1.0}', b'{"schema_version": NaN}',
        b'{"schema_version": null}', b'{"schema_version": 1e999}',
        b'{"schema_version": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda state: repr(state[:40]),
)  # fmt: skip
def test_a_state_of_another_form_is_damaged_even_if_its_sum_is_right(root, state):
    rewrite(root / "step-000010", state)
    assert complaint(root).startswith(f"{root / 'step-000010' / 'state.json'}: ")


@pytest.mark.parametrize("name", ["../step-000002/state.json", "/etc/passwd", "a/b"])
def test_a_manifest_names_files_beside_it_only(root, name):
    path = root / "step-000010" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = "0"
    del manifest["sha256"]
    told = json.dumps(manifest, sort_keys=True).encode()
    path.write_text(json.dumps({**manifest, "sha256": hashlib.sha256(told).hexdigest()}))
    assert complaint(root).startswith(f"{path}: needs state.json and names of files beside it")


def test_numbers_that_json_has_not_come_back(root):
    state = {"loss": float("inf"), "n": 2**100, "deep": [[[]]]}
    checkpoint.publish(root, 11, state, write)
    assert checkpoint.read(root, 11).state == state


def test_a_file_of_a_verified_checkpoint_need_not_be_read_again(root, monkeypatch):
    source, read = checkpoint.read(root, 10), []

    def link(folder: Path) -> None:
        os.link(source.path / "weights.safetensors", folder / "weights.safetensors")
        (folder / "optimizer.safetensors").write_bytes(b"new moments")

    monkeypatch.setattr(
        checkpoint,
        "sha256_file",
        lambda path: (read.append(path.name), durable.sha256_file(path))[1],
    )
    sums = {"weights.safetensors": source.files["weights.safetensors"], "not there": "0"}
    checkpoint.publish(root, 11, {}, link, known=sums)
    assert read == ["optimizer.safetensors", "state.json"]
    monkeypatch.undo()
    found = checkpoint.read(root, 11)
    assert sorted(found.files) == sorted(set(FILES) - {"manifest.json"})
    assert found.files["weights.safetensors"] == source.files["weights.safetensors"]


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


def test_retiring_keeps_the_newest_the_named_and_the_multiples(root):
    for step in (11, 12, 15, 16, 17):
        checkpoint.publish(root, step, {}, write)
    checkpoint.retire(root, 2, also=[2, 99], every=5)
    assert checkpoint.steps(root) == [2, 10, 15, 16, 17]
    checkpoint.retire(root, 1, every=15)
    assert checkpoint.steps(root) == [15, 17]
    assert len(list(root.iterdir())) == 2


@pytest.mark.parametrize("keep", [0, -1, 1])
def test_the_last_checkpoint_is_never_retired(root, keep):
    checkpoint.retire(root, keep)
    assert checkpoint.steps(root) == [10]


def test_of_a_step_that_stays_only_the_newest_revision_stays(root):
    for _ in range(2):
        checkpoint.publish(root, 10, {}, write)
    checkpoint.retire(root, 2, also=[10])
    assert names(root) == ["step-000002", "step-000010.2"]
    assert checkpoint.publish(root, 10, {}, write).path.name == "step-000010.3"


def test_damaged_ones_that_were_passed_over_do_not_push_good_ones_out(root):
    """A run goes back from 10 to 2, and does 3 anew: 2 and 3 are the two newest that stay."""
    spoil(root / "step-000010")
    found, _ = checkpoint.newest(root)
    assert found
    checkpoint.set_aside(root, found.step, found.revision)
    assert names(root) == ["damaged-step-000010", "step-000001", "step-000002"]
    checkpoint.publish(root, 3, {}, write)
    checkpoint.retire(root, 2)
    assert names(root) == ["damaged-step-000010", "step-000002", "step-000003"]
    again = checkpoint.publish(root, 10, {}, write)
    assert again.path.name == "step-000010.1"  # never the same name again
    checkpoint.retire(root, 2)
    assert names(root) == ["step-000003", "step-000010.1"]


def test_publishing_an_earlier_step_sets_the_later_ones_aside_by_itself(root):
    checkpoint.publish(root, 10, {}, write)
    checkpoint.publish(root, 2, {}, write)
    assert names(root) == [
        "damaged-step-000010", "damaged-step-000010.1", "step-000001", "step-000002", "step-000002.1",
    ]  # fmt: skip


def test_setting_aside_is_durable_before_it_returns(root, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: synced.append((path, names(root))))
    checkpoint.set_aside(root, 10, 0)
    assert synced == []
    checkpoint.set_aside(root, 2, 0)
    assert synced == [(root, ["damaged-step-000010", "step-000001", "step-000002"])]


def test_the_next_takes_about_what_the_newest_does(root, tmp_path_factory):
    sizes = [p.stat().st_size for p in (root / "step-000010").iterdir()]
    assert checkpoint.size_bytes(root) == sum(sizes)
    assert checkpoint.size_bytes(tmp_path_factory.mktemp("empty")) == 0


def test_the_manifest_has_the_sum_of_every_other_file(root):
    manifest = json.loads((root / "step-000002" / "manifest.json").read_bytes())
    assert sorted(manifest["files"]) == sorted(set(FILES) - {"manifest.json"})
