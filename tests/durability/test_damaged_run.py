"""A run one of whose files is damaged ends as it would have, or goes on from an older checkpoint and names
the damage, or is refused with one sentence. It never ends with other weights or another log.

`make test` does each kind of damage to each file; `make soak` does it three times, at other places.
tests/runtime/test_corruption.py damages checkpoints and log too, and reads them with their own modules.
"""

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.fault_injection.child import Stand
from ops.fault_injection.facts import differences
from ops.fault_injection.kills import FaultRuns, untoward
from ops.host import BAD_INPUT, DONE, FAILED, PAUSED
from runtime.keys import Stream
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import Machine

PROGRAM = "grpo-lagging"
FULL_ONE_IN = 20
"""For most files the learner only restores the damaged run. One in so many of those also runs to its end."""
BY_CONDUCTOR = ("metrics.jsonl", "evals.jsonl", "status.json")
"""The files that the learner does not read when it restores a run."""
BATCH = 16
Case = tuple[str, str, int]
"""The damaged file, the kind of damage, and a number that draws its place."""


def truncated(content: bytes, stream: Stream, other: bytes) -> bytes:
    return content[: stream.integer(1, len(content) - 1)] if len(content) > 1 else b""


def flipped(content: bytes, stream: Stream, other: bytes) -> bytes:
    at, bit = stream.integer(0, len(content) - 1), stream.integer(0, 7)
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def zeroed(content: bytes, stream: Stream, other: bytes) -> bytes:
    at = stream.integer(0, len(content) - 1)
    length = min(stream.integer(1, 512), len(content) - at)
    return content[:at] + bytes(length) + content[at + length :]


def swapped(content: bytes, stream: Stream, other: bytes) -> bytes:
    return other


def appended(content: bytes, stream: Stream, other: bytes) -> bytes:
    return content + stream.choice([b"\0", b"x", content, other])


def emptied(content: bytes, stream: Stream, other: bytes) -> bytes:
    return b""


DAMAGE: dict[str, Callable[[bytes, Stream, bytes], bytes]] = {
    damage.__name__: damage for damage in (truncated, flipped, zeroed, swapped, appended, emptied)
}


@pytest.fixture(scope="module")
def paused(servers) -> RunDirectory:
    """Returns a paused run with two checkpoints, half-generated answers and a request to pause."""
    fault_runs: FaultRuns = servers.first
    run = fault_runs.new(PROGRAM)
    at = fault_runs.undisturbed(PROGRAM).reached["sample.token"] * 8 // 10
    assert fault_runs.start(run, plans=[("sample.token", at, "pause")]).code == PAUSED
    assert len(list(run.checkpoints.iterdir())) == 2 and list(
        run.checkpoints.glob("*/unfinished-*")
    )
    run.ask_to_pause(PauseRequest(by="user", reason="a fault run", end=True))
    run.write_machine(Machine(memory_bytes=1))
    return run


@pytest.fixture(scope="module")
def files(paused: RunDirectory) -> list[str]:
    left_out = ("lock", "logs/", "evals/")  # no program reads their contents
    names = [str(f.relative_to(paused.path)) for f in paused.path.rglob("*") if f.is_file()]
    return sorted(name for name in names if not name.startswith(left_out))


@pytest.fixture(scope="module")
def stands(servers, paused: RunDirectory) -> dict[str, str]:
    """Returns the checkpoint's name for the digest that a learner has there, the newest first."""
    found: dict[str, str] = {}
    run = copied(servers.first, paused, "stands")
    while checkpoints := sorted(run.checkpoints.iterdir(), key=order):
        (stand,) = servers.first.restore(run)
        found[stand.digest] = checkpoints[-1].name
        shutil.rmtree(checkpoints[-1])
    assert len(found) == 2
    return found


def order(checkpoint: Path) -> tuple[int, int]:
    step, _, revision = checkpoint.name.removeprefix("step-").partition(".")
    return int(step), int(revision or 0)


def copied(fault_runs: FaultRuns, run: RunDirectory, name: str) -> RunDirectory:
    """Returns a copy of a run; it shares, by hard links, the files that are never written in place."""

    def copy(source: str, target: str) -> None:
        shared = "/checkpoints/" in source or "/weights/" in source
        (os.link if shared else shutil.copyfile)(source, target)

    target = RunDirectory(fault_runs.folder, f"damaged-{name}")
    ignored = shutil.ignore_patterns("lock", "*.log.*", "*-[0-9].log", "conductor.log")
    shutil.copytree(run.path, target.path, copy_function=copy, ignore=ignored)
    return target


def changed(paused: RunDirectory, files: list[str], case: Case) -> bytes | None:
    """Returns the damaged file's content; None if the file is deleted."""
    name, kind, _ = case
    stream = Stream(1, *case)
    others = [f for f in files if f != name and Path(f).suffix == Path(name).suffix] or files
    other = (paused.path / stream.choice(others)).read_bytes()
    if kind == "deleted":
        return None
    return DAMAGE[kind]((paused.path / name).read_bytes(), stream, other)


def damaged(
    fault_runs: FaultRuns, paused: RunDirectory, files: list[str], case: Case
) -> RunDirectory:
    """Returns a copy of the run with the damage done."""
    name, kind, number = case
    run = copied(fault_runs, paused, f"{name.replace('/', '-')}-{kind}-{number}")
    (run.path / name).unlink()
    if (content := changed(paused, files, case)) is not None:
        (run.path / name).write_bytes(content)
    return run


def cases_of(paused: RunDirectory, files: list[str], rounds: int, flips: int) -> list[Case]:
    """Returns every kind of damage to every file: `rounds` times, a flipped bit `flips` times as often."""
    kinds = ("truncated", "zeroed", "swapped", "appended", *["flipped"] * flips)
    found = {
        (f, kind, rounds * i + n)
        for f in files
        for i, kind in enumerate(kinds)
        for n in range(1 if f in BY_CONDUCTOR else rounds)
    }
    found |= {(f, kind, 0) for f in files for kind in ("emptied", "deleted")}
    return [
        c for c in sorted(found) if changed(paused, files, c) != (paused.path / c[0]).read_bytes()
    ]


@pytest.mark.parametrize(
    ("rounds", "flips", "at_least"), [(1, 2, 130), pytest.param(3, 5, 500, marks=pytest.mark.soak)]
)
def test_damage_to_any_file_is_noticed_or_harmless(
    servers, paused, files, stands, rounds, flips, at_least
):
    def restored(fault_runs: FaultRuns, batch: tuple[Case, ...]) -> list[str]:
        """Returns what a learner made of each damaged run that it restored."""
        runs = [damaged(fault_runs, paused, files, case) for case in batch]
        found = [
            judged(stand, case, stands) for stand, case in zip(fault_runs.restore(*runs), batch)
        ]
        for run in runs:
            shutil.rmtree(run.path)
        return found

    def resumed(fault_runs: FaultRuns, case: Case) -> str:
        """Returns what came of a damaged run that was started and went on to its end."""
        run = damaged(fault_runs, paused, files, case)
        found = judged_whole(fault_runs, run, case)
        shutil.rmtree(run.path)
        return found

    cases = cases_of(paused, files, rounds, flips)
    by_learner = [case for case in cases if case[0] not in BY_CONDUCTOR]
    batches = [tuple(by_learner[i : i + BATCH]) for i in range(0, len(by_learner), BATCH)]
    outcomes = dict(zip(by_learner, itertools.chain(*servers.map(restored, batches).values())))
    whole = [c for c in cases if c not in outcomes or not Stream(2, *c).integer(0, FULL_ONE_IN - 1)]
    for case, outcome in servers.map(resumed, whole).items():
        if outcomes.setdefault(case, outcome) != outcome:
            outcomes[case] = f"WRONG: {outcomes[case]} and then {outcome}"
    wrong = {case: outcome for case, outcome in outcomes.items() if outcome.startswith("WRONG")}
    counts = Counter(outcomes.values())
    print(len(outcomes), "cases,", len(whole), "to the end:", dict(counts))
    assert wrong == {}
    assert len(outcomes) >= at_least
    assert set(counts) >= {"same", "older checkpoint", "refused", "lines lost and named"}


def judged(stand: Stand, case: Case, stands: dict[str, str]) -> str:
    """Returns how the damage was met, judged by the checkpoint from which the learner goes on."""
    if stand.code in (BAD_INPUT, FAILED):
        one = stand.sentence and "\n" not in stand.sentence
        return "refused" if one else f"WRONG: {stand.sentence!r}"
    if stand.digest not in stands:
        return f"WRONG: stands at an unknown step {stand.step}"
    if stand.digest == next(iter(stands)):
        return "same"
    return "older checkpoint" if names_it(stand.note, case) else f"WRONG: {stand.note!r}"


def judged_whole(fault_runs: FaultRuns, run: RunDirectory, case: Case) -> str:
    """Returns how the damage was met, judged by the whole run."""
    before = run.trajectories.stat().st_size if run.trajectories.exists() else 0
    ended = fault_runs.start(run)
    if wrong := untoward(ended):
        return f"WRONG: {wrong}"
    if ended.code in (BAD_INPUT, FAILED):
        size = run.trajectories.stat().st_size if run.trajectories.exists() else 0
        return "refused" if size <= before else "WRONG: refused only after it had trained"
    assert ended.code == DONE, ended
    facts = fault_runs.examine(run)
    different = facts.problems + differences(facts, fault_runs.undisturbed(PROGRAM).facts)
    told = facts.message
    if different and case[0] in BY_CONDUCTOR and names_it(told, case):
        lost = all(d.startswith(("metrics:", "evals:")) for d in different)
        return "lines lost and named" if lost else f"WRONG: {different}"
    if case[0] == "recipe.toml":  # how many checkpoints are kept may change
        different = [d for d in different if "should have been kept" not in d]
    if different:
        return f"WRONG: {different}"
    return "older checkpoint" if "passed over" in told and names_it(told, case) else "same"


def names_it(told: str, case: Case) -> bool:
    return Path(case[0]).name in told or Path(case[0]).parent.name in told
