"""Only the checkpoint's own small files are read and copied, whatever lies in its folder."""

import json
import os
import socket
from pathlib import Path

import pytest

from runtime.checkpoint_copy import COPIED, check_small_files, copy_small_files, opened
from runtime.errors import BadInput

SECRET = "-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "id_ed25519").write_text(SECRET)
    (tmp_path / "out").mkdir()
    return folder


def test_known_files_are_copied_and_nothing_else(folder: Path) -> None:
    for name in ("evil.py", ".env", "notes.txt", "extra.json", "model.safetensors", "config.json"):
        (folder / name).write_text("x")
    (folder / "README.md").symlink_to("../id_ed25519")
    assert copy_small_files(folder, folder.parent / "out") == [
        "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    assert sorted(os.listdir(folder.parent / "out")) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    "target", ["../id_ed25519", "/dev/zero", "vocab.txt", "nowhere", "../model"]
)
def test_a_link_out_of_the_checkpoint_is_never_followed(folder: Path, target: str) -> None:
    (folder / "vocab.txt").symlink_to(target)
    with pytest.raises(BadInput, match=r"vocab\.txt: (a link that leads|needs a regular file)"):
        copy_small_files(folder, folder.parent / "out")
    with pytest.raises(BadInput, match=r"vocab\.txt"):
        check_small_files(folder)
    assert not (folder.parent / "out" / "vocab.txt").exists()


def test_a_link_into_the_hub_s_own_blobs_is_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "3f").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/3f")
    (tmp_path / "out").mkdir()
    assert copy_small_files(snapshot, tmp_path / "out") == ["tokenizer.json"]
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    (blobs / "4a").symlink_to("../../secret")
    (tmp_path / "secret").write_text(SECRET)
    (snapshot / "vocab.txt").symlink_to("../../blobs/4a")
    with pytest.raises(BadInput, match=r"vocab\.txt: a link that leads out"):
        check_small_files(snapshot)


def test_blobs_that_are_a_link_themselves_lead_nowhere(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "id").write_text(SECRET)
    (repository / "blobs").symlink_to("../keys")
    (snapshot / "vocab.txt").symlink_to("../../blobs/id")
    with pytest.raises(BadInput, match="leads out"):
        check_small_files(snapshot)


def test_pipes_sockets_folders_and_floods_are_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")
    with pytest.raises(BadInput, match="needs a regular file, it is a pipe"):
        check_small_files(folder)
    with pytest.raises(BadInput, match="it is a pipe"), opened(folder / "vocab.txt"):
        pass
    (folder / "vocab.txt").unlink()
    here = Path.cwd()
    os.chdir(folder)  # a socket's path has to be short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("vocab.txt")
            with pytest.raises(BadInput, match="it is a socket"):
                check_small_files(folder)
    finally:
        os.chdir(here)
    (folder / "vocab.txt").unlink()
    with (folder / "vocab.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInput, match="needs at most 67,108,864 bytes, has 1,099,511,627,776"):
        copy_small_files(folder, folder.parent / "out")
    (folder / "vocab.txt").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match=r"x\.jinja: a link that leads out"):
        check_small_files(folder)


def test_what_is_copied_needs_no_weights_and_no_config() -> None:
    assert not {"config.json", "model.safetensors.index.json"} & COPIED
