"""Records the file operations of real code, and gives every state that a power cut could leave of them.

`Recorder` looks at a folder after each call that can change it and writes down what has changed: entries
of folders and contents of files. It is told nothing but which file was synced, so it cannot assume a
protocol that the code does not follow. `crash_states` then gives the states that could be found after a
power cut at any point (method: ALICE, Pillai 2014), under a model weaker than APFS or ext4:

- a file's content since its last sync may have arrived, or any content that it had in between, or half of
  that, cut off there or over the old one or before zeros, or the length alone; or nothing. What was synced
  and is not written over stays
- a folder's entries since its last sync may have arrived independently of each other, in any order; an
  entry that arrived has its file, and a rename arrives whole or not at all
- a file's content and its entry arrive independently
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, combinations, product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runtime import durable, failpoints

CHANGING = ("rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir", "open", "truncate")
LIMIT = 64
"""Combinations of one folder's children that are all tried; of more, those where at most two children
differ from all that has arrived, or from nothing that has."""
SUBSETS = 5
"""Unsynced entries of one folder of which all subsets are tried; of more, each one missing or alone."""

State = dict[str, bytes | None]
"""Contents by path; None is a folder."""


class Entry(NamedTuple):
    """A change of names in one folder; a rename changes two together."""

    folder: int
    names: tuple[tuple[str, int | None], ...]


class Write(NamedTuple):
    file: int
    content: bytes


class Sync(NamedTuple):
    node: int


class Mark(NamedTuple):
    """The point that the recorded code had reached."""

    what: Any


class Recorder:
    """Records the operations on a folder, in order. Files and folders have numbers; the folder has 0."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ops: list[Entry | Write | Sync | Mark] = []
        self.folders = {0}
        self._open, self._busy = io.open, False
        self._nodes, self._made = {root.stat().st_ino: 0}, 1
        self._entries, self._contents = self._scan()
        for (folder, name), node in self._entries.items():
            self.ops.append(Entry(folder, ((name, node),)))
        self.ops += [Write(*item) for item in self._contents.items()]
        self.ops += [Sync(node) for node in range(self._made)]
        self.before = len(self.ops)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records what this process does to the folder within the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, self._looking(getattr(os, name)))
            patch.setattr(io, "open", self._looking(io.open))
            patch.setattr(durable, "_flush", self._flush)
            points = [failpoints.Plan(point=p, nth=0, action=self.look) for p in failpoints.POINTS]
            failpoints.arm(*points)
            try:
                yield
                self.look()
            finally:
                failpoints.disarm()

    def mark(self, what: Any) -> None:
        """Notes that the code has reached this point."""
        self.look()
        self.ops.append(Mark(what))

    def look(self) -> None:
        """Writes down what has changed since the last look."""
        if self._busy:
            return
        self._busy = True
        entries, contents = self._scan()
        before = self._entries
        keys = sorted({*before, *entries})
        changed = {k: entries.get(k) for k in keys if before.get(k) != entries.get(k)}
        if changed:
            folder, *others = {folder for folder, _ in changed}
            appeared = [node for node in changed.values() if node is not None]
            gone = [before[k] for k, node in changed.items() if node is None]
            one = len(changed) == 1 or (len(changed) == 2 and appeared == gone)
            assert one and not others, f"not one operation: {changed}"
            self.ops.append(
                Entry(folder, tuple((name, node) for (_, name), node in changed.items()))
            )
        for node, content in contents.items():
            if content != self._contents.get(node, b""):
                self.ops.append(Write(node, content))
        self._entries, self._contents, self._busy = entries, contents, False

    def _scan(self) -> tuple[dict[tuple[int, str], int], dict[int, bytes]]:
        entries, contents, inodes = {}, {}, {self.root.stat().st_ino: 0}
        waiting = [(self.root, 0)]
        while waiting:
            folder, node = waiting.pop()
            for found in sorted(os.scandir(folder), key=lambda entry: entry.name):
                inode = found.inode()
                if inode not in inodes:
                    inodes[inode] = self._nodes.get(inode, self._made)
                    self._made += inode not in self._nodes
                entries[node, found.name] = inodes[inode]
                if found.is_dir():
                    self.folders.add(inodes[inode])
                    waiting.append((Path(found.path), inodes[inode]))
                else:
                    with self._open(found.path, "rb") as file:
                        contents[inodes[inode]] = file.read()
        self._nodes = inodes  # the number of a deleted file may be given again
        return entries, contents

    def _looking(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.look()
            return result

        return call

    def _flush(self, descriptor: int) -> None:
        self.look()
        self.ops.append(Sync(self._nodes[os.fstat(descriptor).st_ino]))


class Disk:
    """What has certainly arrived on the disk, and what may have."""

    def __init__(self, folders: set[int], quiet: tuple[str, ...]) -> None:
        self._folders, self._quiet = folders, quiet
        self._entries: dict[int, dict[str, int]] = {}
        self._unsynced: dict[int, list[Entry]] = {}
        self._content: dict[int, bytes] = {}
        self._history: dict[int, list[bytes]] = {}

    def apply(self, op: Entry | Write | Sync) -> None:
        """Takes in one more operation."""
        match op:
            case Entry():
                self._unsynced.setdefault(op.folder, []).append(op)
            case Write():
                self._history.setdefault(op.file, []).append(op.content)
            case Sync() if op.node in self._folders:
                self._entries[op.node] = self._with(op.node, self._unsynced.pop(op.node, []))
            case Sync():
                *_, self._content[op.node] = (
                    self._content.get(op.node, b""), *self._history.pop(op.node, [])
                )  # fmt: skip

    def states(self, folder: int = 0, path: str = "") -> Iterator[State]:
        """Yields every state of a folder that may be found."""
        quiet, seen = path.startswith(self._quiet), []
        for arrived in _subsets(self._unsynced.get(folder, []), 0 if quiet else SUBSETS):
            entries = self._with(folder, arrived)
            if entries not in seen:
                seen.append(entries)
                axes = [self._node(node, path + name) for name, node in entries.items()]
                for chosen in _different(axes, 0) if quiet else _chosen(axes):
                    yield dict(chain.from_iterable(state.items() for state in chosen))

    def _node(self, node: int, path: str) -> list[State]:
        if node in self._folders:
            return [{path: None, **inside} for inside in self.states(node, f"{path}/")]
        contents = _contents(self._content.get(node, b""), self._history.get(node, []))
        return [{path: content} for content in contents]

    def _with(self, folder: int, arrived: list[Entry]) -> dict[str, int]:
        entries = dict(self._entries.get(folder, {}))
        for op in arrived:
            for name, node in op.names:
                entries.pop(name, None)
                if node is not None:
                    entries[name] = node
        return entries


def crash_states(recorder: Recorder, quiet: tuple[str, ...]) -> Iterator[tuple[int, State]]:
    """Yields the states that a power cut may leave, each with the number of operations before it.

    A folder under a prefix in `quiet`, which recovery does not read, has arrived as a whole or not at all.
    """
    disk = Disk(recorder.folders, quiet)
    for done, op in enumerate(recorder.ops, start=1):
        if not isinstance(op, Mark):
            disk.apply(op)
        if done >= recorder.before:
            yield from ((done, state) for state in disk.states())


def materialise(state: State, root: Path) -> None:
    """Makes a state in an empty folder. Links become copies: nothing writes into a published file."""
    for path, content in state.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def _contents(old: bytes, history: list[bytes]) -> list[bytes]:
    """Returns what a file may hold, from no unsynced write having arrived to all of them."""
    found = [old]
    for new in history:
        same = next(
            (i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new))
        )
        half = (same + len(new)) // 2
        found += [new[:half], new[:half] + old[half:]]
        found += [new[:kept] + bytes(len(new) - kept) for kept in (half, same)]
        found.append(new)
    return list(dict.fromkeys(reversed(found)))[::-1]


def _subsets(entries: list[Entry], most: int) -> Iterator[list[Entry]]:
    if len(entries) <= most:
        for size in range(len(entries), -1, -1):
            yield from map(list, combinations(entries, size))
        return
    yield entries
    yield []
    if most:
        yield from ([e for e in entries if e is not lost] for lost in entries)
        yield from ([alone] for alone in entries)


def _chosen(axes: list[list[State]]) -> Iterator[tuple[State, ...]]:
    if prod(map(len, axes)) <= LIMIT:
        yield from product(*axes)
    else:
        yield from _different(axes, 2)


def _different(axes: list[list[State]], most: int) -> Iterator[tuple[State, ...]]:
    """Yields one state of each axis: of all axes the last or of all the first, but for `most` of them."""
    for start in ([axis[-1] for axis in axes], [axis[0] for axis in axes]):
        for size in range(most + 1):
            for places in combinations(range(len(axes)), size):
                for options in product(*(axes[place] for place in places)):
                    chosen = list(start)
                    for place, option in zip(places, options):
                        chosen[place] = option
                    yield tuple(chosen)
