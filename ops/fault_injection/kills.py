"""Kills fault runs, at random and at every failpoint, and compares what is left with an undisturbed run.

fault_runs = FaultRuns(server, folder)
report = kill_at_random(fault_runs, "grpo", kills=100, seed=0)
assert not report.problems
"""

import itertools
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from ops.fault_injection.child import Ended, Job, Stand, Start
from ops.fault_injection.facts import Facts, differences
from ops.fault_injection.fork_server import ForkServer
from ops.fault_injection.programs import begin, settings_of
from ops.host import BAD_INPUT, DONE, FAILED, PAUSED
from runtime.keys import Stream, derive
from runtime.rundir import RunDirectory

MOST_STARTS = 200
"""The most starts of one run; a run that needs more makes no progress."""
MOST_RUNS = 60
KILLED_WITHIN = 0.8
"""The share of an undisturbed run's time within which a start is killed: most starts die, and each gets a
little further.
"""
NTH = (1, 1, 1, 1, 2, 3)
"""The hits of a failpoint that are drawn from: late hits need a run that is young."""
PAUSED_AT = ("sample.token", "learn.micro_batch", "step.learned")


class Undisturbed(Struct):
    """Holds a run that is not disturbed."""

    facts: Facts
    reached: dict[str, int]
    seconds: float


class KillReport(Struct, kw_only=True):
    """Reports what was done to a program's runs, and the outcome."""

    program: str
    ends: dict[str, int] = {}
    """The number of starts by how they ended: "kill", "abort", "raise", "pause", "done"."""
    runs: int = 0
    differences: int = 0
    """The number of runs that did not end as the undisturbed one."""
    lost: int = 0
    """The number of trajectories that are missing in the logs."""
    duplicated: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """A sentence for each problem; empty if all is as promised."""

    @property
    def kills(self) -> int:
        """Returns the number of starts that ended by force."""
        return sum(n for how, n in self.ends.items() if how not in ("done", "pause"))

    def add(self, other: "KillReport") -> None:
        """Adds another report to this one."""
        self.ends = dict(Counter(self.ends) + Counter(other.ends))
        for name in ("runs", "differences", "lost", "duplicated", "seconds", "problems"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class FaultRuns:
    """Makes runs in a folder and starts them with one server; several may share the folder."""

    _lock = threading.Lock()
    _names = itertools.count()

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._zygote = server
        self.folder = folder
        self.model = folder / "model"
        with self._lock:
            server.do(Job(what="model", path=str(self.model)))

    def new(self, program: str, **changes: Any) -> RunDirectory:
        """Returns a run that was never started."""
        settings = settings_of(program, self.model, **changes)
        return begin(settings, self.folder, f"{program}-{next(self._names)}")

    def start(self, run: RunDirectory, **job: Any) -> Ended:
        """Starts a run from where it stands, and waits for that process's end."""
        run.withdraw_pause()
        ended = self._zygote.do(Job(what="run", path=str(run.path), **job))
        if ended.result is not None:
            ended.result = msgspec.convert(ended.result, Start)
        return ended

    def restore(self, *runs: RunDirectory) -> list[Stand]:
        """Makes the learner load where each run stands, and nothing more. Raises RuntimeError for a
        traceback.
        """
        for run in runs:
            run.withdraw_pause()
        first, *more = (str(run.path) for run in runs)
        ended = self._zygote.do(Job(what="restore", path=first, more=more))
        if ended.code != DONE or ended.printed:
            raise RuntimeError(
                f"restoring {first} and others ended with {ended.code}: {ended.printed}"
            )
        return msgspec.convert(ended.result, list[Stand])

    def numerics(self) -> str:
        """Returns the digest of how this machine computes."""
        return self._zygote.do(Job(what="numerics", path="")).result

    def finish(self, run: RunDirectory, jobs: Iterable[dict[str, Any]] = ()) -> list[Ended]:
        """Starts a run as each of `jobs` says, and then undisturbed, until it has finished."""
        ends: list[Ended] = []
        for job in itertools.chain(jobs, itertools.repeat({}, MOST_STARTS)):
            ends.append(self.start(run, **job))
            if ends[-1].code == DONE or len(ends) > MOST_STARTS:
                break
        return ends

    def examine(self, run: RunDirectory) -> Facts:
        """Returns the facts of a finished run. Raises RuntimeError if they cannot be had."""
        ended = self._zygote.do(Job(what="examine", path=str(run.path)))
        if ended.code != DONE:
            raise RuntimeError(f"{run.path}: {ended.printed}")
        return msgspec.convert(ended.result, Facts)

    def undisturbed(self, program: str, **changes: Any) -> Undisturbed:
        """Returns the run that the others are compared with; all fault runs in one folder share it."""
        changed = f"-{derive(json.dumps(changes)):x}" if changes else ""
        path = self.folder / f"{program}{changed}.json"
        with self._lock:
            if not path.exists():
                run = self.new(program, **changes)
                ended = self.start(run)
                if ended.code != DONE:
                    raise RuntimeError(f"{run.path}: {ended.printed or ended.result}")
                facts = self.examine(run)
                if facts.problems:
                    raise RuntimeError(f"{run.path}: {'; '.join(facts.problems)}")
                found = Undisturbed(facts, ended.result.reached, ended.seconds)
                path.write_bytes(msgspec.json.encode(found))
            return msgspec.json.decode(path.read_bytes(), type=Undisturbed)

    def judge(
        self, run: RunDirectory, program: str, ends: list[Ended], **changes: Any
    ) -> KillReport:
        """Returns the report on a run that has come through."""
        report = KillReport(program=program, runs=1, seconds=sum(ended.seconds for ended in ends))
        report.ends = dict(Counter(how(ended) for ended in ends))
        report.problems = [sentence for ended in ends for sentence in untoward(ended)]
        if ends[-1].code == DONE:
            self._compare(run, report, self.undisturbed(program, **changes).facts)
        else:
            report.problems.append(f"it did not end within {len(ends)} starts")
        report.problems = [f"{run.name}: {sentence}" for sentence in report.problems]
        if not report.problems:
            shutil.rmtree(run.path)
        return report

    def _compare(self, run: RunDirectory, report: KillReport, expected: Facts) -> None:
        try:
            found = self.examine(run)
        except RuntimeError as error:
            report.problems.append(f"it cannot be read: {error}")
            return
        different = differences(found, expected)
        report.differences = int(bool(different))
        report.problems += found.problems + different
        report.duplicated = found.duplicates
        report.lost = max(expected.rows - (found.rows - found.duplicates), 0)


def how(ended: Ended) -> str:
    """Returns how a start ended, in a word."""
    known = {DONE: "done", PAUSED: "pause", FAILED: "raise", BAD_INPUT: "refused"}
    return known.get(ended.code) or {-9: "kill", -6: "abort"}.get(ended.code, f"code {ended.code}")


def untoward(ended: Ended) -> list[str]:
    """Returns a sentence for each forbidden property of an end, whatever was done to the run."""
    found = []
    if ended.code not in (DONE, PAUSED, FAILED, BAD_INPUT, -9, -6):
        found.append(f"a start ended with code {ended.code}")
    if "Traceback" in ended.printed:
        found.append(f"a start left a traceback: {ended.printed.strip()[-600:]}")
    sentence = ended.result.sentence if ended.result is not None else ""
    if ended.code in (FAILED, BAD_INPUT) and (not sentence or "\n" in sentence):
        found.append(f"a failure needs one sentence, has {sentence!r}")
    return found


def kill_at_random(fault_runs: FaultRuns, program: str, kills: int, seed: int) -> KillReport:
    """Kills runs at random moments, until there were so many kills. Returns the report."""
    began, stream = time.monotonic(), Stream(seed, "kills", program)
    within_ms = int(fault_runs.undisturbed(program).seconds * 1000 * KILLED_WITHIN)
    report = KillReport(program=program)

    def jobs() -> Iterator[dict[str, Any]]:
        for _ in range(kills - report.kills):
            after_s = stream.integer(0, within_ms) / 1000
            yield {"after_s": after_s, "then": stream.choice(["kill", "abort"])}

    while report.kills < kills:
        run = fault_runs.new(program)
        report.add(fault_runs.judge(run, program, fault_runs.finish(run, jobs())))
    report.seconds = time.monotonic() - began
    return report


def die_at_each(
    fault_runs: FaultRuns, program: str, action: str, seed: int, points: Iterable[str] | None = None
) -> KillReport:
    """Ends runs at one failpoint after another, in a drawn order, until they ended at each of `points`
    (by default all that the program reaches): at the first hit or, for a point that is hit often, at
    one of the first few. Returns the report.
    """
    began, stream = time.monotonic(), Stream(seed, "points", program, action)
    reached = points_of(fault_runs, program)
    pending = stream.shuffled(sorted(reached if points is None else points))
    report = KillReport(program=program)
    while pending and report.runs < MOST_RUNS:
        run, ends, before = fault_runs.new(program), [], len(pending)
        while pending and len(ends) < MOST_STARTS:
            point = pending[0]
            nth = min(stream.choice(NTH), reached[point])
            pause = [("step.learned", 1, "pause")] if point.startswith("pause.") else []
            plans = [(point, nth, action), *pause]
            ends.append(fault_runs.start(run, plans=plans))
            if ends[-1].code == DONE:  # the run ended before so many hits
                break
            if how(ends[-1]) == action:
                pending.pop(0)
        if not ends or ends[-1].code != DONE:
            ends += fault_runs.finish(run)
        report.add(fault_runs.judge(run, program, ends))
        if len(pending) == before:
            report.problems.append(f"{program}: nothing came to {pending.pop(0)}")
    report.seconds = time.monotonic() - began
    return report


def points_of(fault_runs: FaultRuns, program: str) -> dict[str, int]:
    """Returns every failpoint that a program reaches, with the hits: undisturbed, paused or resumed."""
    found = dict(fault_runs.undisturbed(program).reached)
    run = fault_runs.new(program)
    for at in PAUSED_AT:
        ended = fault_runs.start(run, plans=[(at, 1, "pause")])
        for point, hits in ended.result.reached.items():
            found.setdefault(point, hits)
    return found
