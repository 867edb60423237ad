"""Damage to a stored file is noticed and named in a sentence, or changes nothing.

The tests damage one file at a time, of three checkpoints and the log that they belong to, and restore it.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime import checkpoint
from runtime.checkpoint import Checkpoint
from runtime.errors import BadInput, Damaged
from runtime.journal import HEADER, MAGIC, records
from runtime.trajectory_log import TrajectoryLog
from tests.runtime.test_trajectory import other, row, to_batch

BLOCK = 4096
TEXTS = {
    "no JSON": b"step: 3",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"files":' * 50_000 + b"1" + b"}" * 50_000,
    "a huge number": b'{"step": ' + b"9" * 5000 + b', "schema_version": ' + b"9" * 5000 + b"}",
    "infinity": b'{"step": 1e999, "schema_version": 1e999}',
    "NaN": b'{"step": NaN, "revision": NaN, "files": {}, "schema_version": NaN}',
    "no UTF-8": b'{"step": "\xff\xfe"}',
    "UTF-16": '{"step": 3}'.encode("utf-16"),
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "an array": b"[3, 0, {}]",
    "null": b"null",
    "zeros": bytes(300),
    "blanks": b" " * 300,
    "a lone surrogate": rb'{"step": "\ud800"}',
    "keys twice": b'{"step": 3, "step": 3, "revision": 0, "revision": 0, "files": {}, "sha256": ""}',
}


class Damage(NamedTuple):
    what: str
    do: Callable[[], object]


class Stored(NamedTuple):
    """Three published checkpoints and their log."""

    root: Path
    checkpoints: list[Checkpoint]

    @property
    def log(self) -> Path:
        return self.root / "trajectories.log"


def noise(count: int, seed: object) -> bytes:
    return hashlib.shake_256(str(seed).encode()).digest(count)


@pytest.fixture
def stored(tmp_path) -> Stored:
    root = tmp_path / "checkpoints"
    root.mkdir()
    log, made = TrajectoryLog(root / "trajectories.log"), []
    for step in (1, 2, 3):
        for _ in range(2):
            log.append(to_batch([row(step=step, text="x" * 2000), other(step=step)]))
        log.sync()

        def write(folder: Path, step: int = step) -> None:
            (folder / "weights.safetensors").write_bytes(noise(5 * BLOCK + 77, ("w", step)))
            (folder / "optimizer.safetensors").write_bytes(noise(3 * BLOCK, ("o", step)))
            (folder / f"v{step - 1:06d}.safetensors").write_bytes(noise(BLOCK + 1, ("w", step - 1)))

        state = {"log_size": log.size, "log_chain": log.chain, "run": {"step": step}}
        made.append(checkpoint.publish(root, step, state, write))
    log.close()
    return Stored(root, made)


# ── damages ──────────────────────────────────────────────────────────────────────────────────────


def changed(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def of_content(path: Path, every: int) -> Iterator[Damage]:
    """Yields cuts, flipped bits, zeros and added bytes: near both ends at each byte, else one in `every`."""
    content, size = path.read_bytes(), path.stat().st_size
    edge = {*range(min(size, 64)), *range(max(size - 32, 0), size)}
    cuts = {
        0,
        size // 2,
        *range(0, size, BLOCK),
        *range(BLOCK - 1, size, BLOCK),
        *range(0, size, every),
    }
    for at in sorted(cuts | edge):
        yield Damage(f"cut off at {at}", lambda at=at: path.write_bytes(content[:at]))
    for at in sorted({*range(0, size, every)} | edge):
        flipped = bytes([content[at] ^ 1 << at % 8])
        yield Damage(
            f"a bit at {at}", lambda a=at, f=flipped: path.write_bytes(changed(content, a, f))
        )
    for at in range(0, size, 512):
        zeros = bytes(min(512, size - at))
        yield Damage(
            f"zeros at {at}", lambda a=at, z=zeros: path.write_bytes(changed(content, a, z))
        )
    for more in (b"\0", b"\n", b"x", b"{}", bytes(BLOCK), content):
        yield Damage(f"{len(more)} bytes more", lambda m=more: path.write_bytes(content + m))
    yield Damage("a byte at the start", lambda: path.write_bytes(b"\n" + content))


def of_place(path: Path) -> Iterator[Damage]:
    """Yields damage to the directory entry: the file is gone, or is a folder or a link."""
    yield Damage("deleted", path.unlink)
    yield Damage("a folder", lambda: (path.unlink(), path.mkdir()))
    yield Damage("a link to nowhere", lambda: (path.unlink(), path.symlink_to("nowhere")))
    yield Damage("a link to itself", lambda: (path.unlink(), path.symlink_to(path.name)))


def of_others(path: Path, stored: Stored) -> Iterator[Damage]:
    """Yields a replacement by the content of each other file."""
    for other_path in sorted(stored.root.rglob("*")):
        if other_path.is_file() and other_path != path:
            content = other_path.read_bytes()
            name = f"{other_path.parent.name}/{other_path.name}"
            yield Damage(f"replaced by {name}", lambda c=content: path.write_bytes(c))


def of_meaning(path: Path) -> Iterator[Damage]:
    """Yields texts that are not JSON, or JSON with other keys and values."""
    for name, text in TEXTS.items():
        yield Damage(name, lambda text=text: path.write_bytes(text))
    whole = json.loads(path.read_bytes())
    for key in whole:
        for value in (None, -1, 0, 1.5, 10**30, "", [], {}, {"a": {}}, True):
            told = json.dumps({**whole, key: value}, sort_keys=True)
            yield Damage(f"{key} = {value}", lambda told=told: path.write_text(told))
        told = json.dumps({k: v for k, v in whole.items() if k != key}, sort_keys=True)
        yield Damage(f"no {key}", lambda told=told: path.write_text(told))
    yield Damage("a key more", lambda: path.write_text(json.dumps({**whole, "more": 1})))
    yield Damage("written in another way", lambda: path.write_text(json.dumps(whole, indent=1)))


def swap(one: Path, two: Path) -> None:
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def content_of(found: Checkpoint) -> tuple[Checkpoint, dict[str, bytes]]:
    return found, {name: (found.path / name).read_bytes() for name in found.files}


def judged(stored: Stored, step: int, good: list[tuple[Checkpoint, dict[str, bytes]]]) -> str:
    """Returns "named" or "harmless" for the damaged checkpoint of `step`. Lets all but Damaged through."""
    verdict, sentence = "harmless", ""
    try:
        assert content_of(checkpoint.read(stored.root, step)) == good[step - 1]
    except Damaged as error:
        verdict, sentence = "named", str(error)
        folder = stored.checkpoints[step - 1].path
        assert "\n" not in sentence and len(sentence) < 400
        assert sentence.startswith((f"{folder}: ", f"{folder}/"))
    found, passed_over = checkpoint.newest(stored.root)
    assert found is not None
    if verdict == "named" and step == 3:
        assert passed_over == [sentence] and content_of(found) == good[1]
    else:
        assert passed_over == [] and content_of(found) == good[2]
    return verdict


def restored(path: Path, folder: Path) -> None:
    """Restores a file or folder from its copy, whatever is in its place now."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    shutil.copytree(folder, path) if folder.is_dir() else shutil.copyfile(folder, path)


@pytest.mark.parametrize("step", [3, pytest.param(2, marks=pytest.mark.soak)])
def test_damage_of_a_checkpoint_is_named_and_the_one_before_is_used(stored, tmp_path, step):
    good = [content_of(found) for found in stored.checkpoints]
    pristine, counts = tmp_path / "pristine", Counter()
    shutil.copytree(stored.root, pristine)
    folder = stored.checkpoints[step - 1].path
    for path in sorted(folder.iterdir()):
        small = path.suffix == ".json"
        damages = [
            *of_content(path, 1 if small and step == 3 else 256),
            *of_place(path),
            *of_others(path, stored),
            *(of_meaning(path) if small else ()),
        ]
        before = path.read_bytes()
        for damage in damages:
            damage.do()
            same = path.is_file() and path.read_bytes() == before
            verdict = judged(stored, step, good)
            assert (verdict == "harmless") <= (same or path.name == "manifest.json"), damage
            counts[f"{path.suffix[1:]} {verdict}{' (same bytes)' * same}"] += 1
            restored(path, pristine / folder.name / path.name)
    for one, two in combinations(sorted(folder.iterdir()), 2):
        swap(one, two)
        assert judged(stored, step, good) == "named"
        swap(one, two)
        counts["swapped"] += 1
    print(dict(counts), sum(counts.values()))
    assert sum(counts.values()) > (2000 if step == 3 else 1000)


@pytest.mark.parametrize("whole", [False, True], ids=["a file", "the folder"])
def test_a_checkpoint_that_is_in_the_place_of_another_is_named(stored, whole):
    good = [content_of(found) for found in stored.checkpoints]
    one, two = stored.checkpoints[1].path, stored.checkpoints[2].path
    if whole:
        shutil.rmtree(two)
        shutil.copytree(one, two)
        assert judged(stored, 3, good) == "named"
        return
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        swap(one / name, two / name)
        found, passed_over = checkpoint.newest(stored.root)
        assert found and content_of(found) == good[0]
        assert [Path(s.partition(":")[0]).parent.name for s in passed_over] == [two.name, one.name]
        swap(one / name, two / name)


def test_other_things_between_the_checkpoints_and_in_them_do_no_harm(stored):
    good = [content_of(found) for found in stored.checkpoints]
    for name in (
        ".DS_Store",
        "step-000004 copy",
        "step-4",
        "damaged-step-000009",
        "step-000003.01",
    ):
        (stored.root / name).mkdir()
    (stored.checkpoints[2].path / ".DS_Store").write_bytes(b"x")
    assert judged(stored, 3, good) == "harmless"
    (stored.root / "step-000004").write_text("no folder")
    found, passed_over = checkpoint.newest(stored.root)
    assert found and found.step == 3
    assert passed_over == [
        f"{stored.root}/step-000004/manifest.json: cannot be read: Not a directory"
    ]


def test_if_every_checkpoint_is_damaged_each_is_named(stored):
    for found in stored.checkpoints:
        (found.path / "weights.safetensors").write_bytes(b"")
    found, passed_over = checkpoint.newest(stored.root)
    assert found is None and len(passed_over) == 3


# ── the log ──────────────────────────────────────────────────────────────────────────────────────


def frames(content: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(content):
        end = at + HEADER.size + HEADER.unpack_from(content, at)[1]
        found.append(content[at:end])
        at = end
    return found


def of_order(path: Path) -> Iterator[Damage]:
    """Yields whole records that are lost, repeated or out of place."""
    parts = frames(path.read_bytes())
    for i in range(len(parts)):
        lost = parts[:i] + parts[i + 1 :]
        yield Damage(f"record {i} lost", lambda lost=lost: path.write_bytes(b"".join(lost)))
        twice = parts[: i + 1] + parts[i:]
        yield Damage(f"record {i} twice", lambda twice=twice: path.write_bytes(b"".join(twice)))
    for i, j in combinations(range(len(parts)), 2):
        order = list(parts)
        order[i], order[j] = parts[j], parts[i]
        yield Damage(f"records {i} and {j}", lambda order=order: path.write_bytes(b"".join(order)))


def judged_log(stored: Stored, found: Checkpoint, content: bytes) -> str:
    """Returns "named" or "harmless" for a run that goes on from a checkpoint with the damaged log."""
    before = stored.log.read_bytes() if stored.log.is_file() else b""
    log = TrajectoryLog(stored.log)
    size = found.state["log_size"]
    try:
        log.restore(size, found.state["log_chain"])
    except Damaged as error:
        assert str(error).startswith(f"{stored.log}: ") and "\n" not in str(error)
        assert not stored.log.is_file() or stored.log.read_bytes() == before  # nothing is cut
        return "named"
    finally:
        log.close()
    assert stored.log.read_bytes() == content[:size] == before[:size]
    return "harmless"


def judged_reader(stored: Stored, content: list[bytes]) -> str:
    """Returns how a reader without a checkpoint met the damage: it may take the end for a torn tail."""
    given = []
    try:
        given.extend(records(stored.log))
        verdict = "read" if given == content else "read to a torn tail"
    except Damaged as error:
        verdict = "named"
        assert str(error).startswith(f"{stored.log}: ") and "\n" not in str(error)
    assert given == content[: len(given)]
    return verdict


@pytest.mark.parametrize("step", [3, pytest.param(2, marks=pytest.mark.soak)])
def test_damage_of_the_log_is_named_or_is_behind_the_checkpoint(stored, tmp_path, step):
    content, counts, readers = stored.log.read_bytes(), Counter(), Counter()
    pristine, whole = tmp_path / "log", list(records(stored.log))
    shutil.copyfile(stored.log, pristine)
    every_header = [
        Damage(f"bit {bit} of the header at {at}", lambda a=at, b=bit: stored.log.write_bytes(
            changed(content, a, bytes([content[a] ^ 1 << b]))))
        for start in [0, *(sum(map(len, frames(content)[:i])) for i in range(1, 6))]
        for at in range(start, start + HEADER.size) for bit in range(8)
    ]  # fmt: skip
    damages = [
        *of_content(stored.log, 64), *every_header, *of_place(stored.log), *of_order(stored.log),
        *of_others(stored.log, stored),
        Damage("a record's start behind it", lambda: stored.log.write_bytes(content + MAGIC)),
        Damage("noise", lambda: stored.log.write_bytes(noise(len(content), 0))),
    ]  # fmt: skip
    found = stored.checkpoints[step - 1]
    size = found.state["log_size"]
    for damage in damages:
        damage.do()
        now = stored.log.read_bytes() if stored.log.is_file() else b""
        if stored.log.is_file():
            readers[judged_reader(stored, whole)] += 1
        verdict = judged_log(stored, found, content)
        assert (verdict == "harmless") == (now[:size] == content[:size]), damage
        counts[verdict] += 1
        restored(stored.log, pristine)
    print(dict(counts), dict(readers), sum(counts.values()))
    assert sum(counts.values()) > 1000


def test_of_a_damaged_log_the_newest_checkpoint_before_the_damage_is_used(stored):
    content = stored.log.read_bytes()
    log = TrajectoryLog(stored.log)
    sizes = [0, *(found.state["log_size"] for found in stored.checkpoints)]

    def accept(found: Checkpoint) -> None:
        log.verify(found.state["log_size"], found.state["log_chain"])

    for at in range(0, len(content), 97):
        stored.log.write_bytes(changed(content, at, bytes([content[at] ^ 8])))
        whole = sum(size <= at for size in sizes) - 1
        found, passed_over = checkpoint.newest(stored.root, accept)
        assert (found.step if found else 0) == whole
        assert len(passed_over) == 3 - whole and len(set(passed_over)) == 1
        assert passed_over[0].startswith(f"{stored.log}: the record at byte ")


def test_a_newer_pippin_s_checkpoint_is_refused_and_no_older_one_is_taken(stored):
    folder = stored.checkpoints[2].path
    for version in (2, 3, 10**30):
        state = json.dumps({"schema_version": version, "unknown": {}}).encode()
        (folder / "state.json").write_bytes(state)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest |= {"a key of tomorrow": 1}
        manifest["files"]["state.json"] = hashlib.sha256(state).hexdigest()
        del manifest["sha256"]
        manifest["sha256"] = checkpoint._sum(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BadInput, match=rf"version {version} is newer .* knows \(1\)"):
            checkpoint.newest(stored.root)
