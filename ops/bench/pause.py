"""Measures how soon a pause frees the machine, and a resume samples again, at random moments of real runs.

The quickstart in small and in exact mode, through the command line, paused again and again: the end must be
that of a run that is not paused, bit for bit. Every fifth pause is a `stop`, after which another process goes
on; every tenth comes while Ray or the actors start.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from msgspec import Struct, to_builtins

from actors.pool import ACTOR_STARTED
from ops import processes
from ops.bench.report import print_table, write_json
from ops.processes import session_of
from ops.terminal import say
from runtime.failpoints import FOLDER_VARIABLE, VARIABLE
from runtime.keys import derive
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import ALIVE, Status

RECIPE = Path(__file__).parents[2] / "configs" / "quickstart.toml"
SMALL = (
    "exact=true", "algorithm.prompts_per_step=8", "eval.prompts=8", "eval.samples=1",
    "eval.every_steps=10", "dashboard.enabled=false", "power.keep_awake=false",
)  # fmt: skip
PAUSE_P95_S, PAUSE_MAX_S, RESUME_S = 2.0, 10.0, 10.0
"""The promised seconds. The model's load time comes on top of the last."""
LATEST_S = 3.0
"""The latest moment of a pause, in seconds after the first token of a stretch."""
STARTING_S = 8.0
STEPS_TIMED = 30
STOP_EVERY, START_EVERY = 5, 10
LIMIT_S = 300.0
DIGESTS = ("weights_digest", "optimizer_digest", "trajectories_digest")
LOAD = """
import sys, time
from pathlib import Path
from runtime.blas import load_blas
load_blas(True)
import mlx.core as mx
from configs import load
from policies.load import load_policy
settings = load(Path(sys.argv[1]))
began = time.perf_counter()
mx.eval(load_policy(settings.model, Path(settings.model.path), settings.seed).trained())
print(time.perf_counter() - began)
"""


class Pause(Struct, kw_only=True):
    """Holds one pause, and what came after it. Times are in seconds; None where the run was paused
    before it came to that.
    """

    how: str
    """"pause", "stop", or "starting" where the run was paused before it sampled."""
    doing: str
    """What the run was doing when the pause was asked for."""
    gone_s: float
    """Seconds from the request until the last process of the host's session is gone."""
    ray_s: float | None = None
    """Seconds from `resume` until Ray has started."""
    actors_s: float | None = None
    """Seconds from then until every actor has started, with its model loaded."""
    token_s: float | None = None
    """Seconds from `resume` until the first new token."""


class Paused:
    """Pauses and resumes a run."""

    def __init__(self, folder: Path, name: str, options: list[str]) -> None:
        self.run = RunDirectory(folder / "runs", name)
        self._options = options
        marks = folder / f"{name}-marks"
        marks.mkdir()
        # Armed without a plan: a process touches a file when it comes to a point for the first time.
        self._environment = {**os.environ, VARIABLE: "", FOLDER_VARIABLE: str(marks)}
        self._token = marks / "reached-sample.token"
        self._resumed = time.time()
        self._ray: float | None = None
        """The time when Ray had started in this stretch."""

    def launch(self) -> None:
        """Starts the run in the background."""
        self._resumed = time.time()
        self._pippin("launch", "--name", self.run.name, *self._options, "--detach")

    def pause(self, how: str, after_s: float) -> Pause | None:
        """Pauses the run so long after its first new token, or after it was resumed. Returns None if it
        has ended.
        """
        if how != "starting":
            self._wait(lambda: self._first_token() is not None)
        time.sleep(after_s)
        host, doing = self._host(), self._status().doing
        self._ray = _changed(self.run.path / "ray.json", self._resumed)  # a pause removes it
        began = time.monotonic()
        if self._status().state == "finished" or not self.run.locked():
            return None
        request = PauseRequest(by="user", reason="a benchmark", end=how == "stop")
        self.run.ask_to_pause(request)
        if host:
            self._wait(lambda: not processes.belonging(host, ""))
        else:  # it came before there was one
            self._wait(lambda: self._status().state not in ALIVE)
        gone_s = time.monotonic() - began
        self._wait(lambda: self._status().state not in ALIVE)
        if self._status().state == "finished":
            return None
        pause = Pause(how=how, doing=doing, gone_s=gone_s)
        if how == "stop":
            self._wait(lambda: not self.run.locked())
        return pause

    def resume(self) -> None:
        """Resumes the run, in the process that waits or in another."""
        self._resumed = time.time()
        if self.run.locked():
            self.run.withdraw_pause()
        else:
            self._pippin("resume", self.run.name, "--detach")

    def describe_resume(self, pause: Pause) -> None:
        """Notes how the last resume went, as far as it came."""
        ray, started, token = self._ray, self._actors(), self._first_token()
        pause.ray_s = ray - self._resumed if ray else None
        pause.actors_s = started - ray if ray and started else None
        pause.token_s = token - self._resumed if token else None

    def finish(self) -> Status:
        """Waits for the run's end, and returns its status."""
        self._wait(lambda: not self.run.locked())
        return self._status()

    def _first_token(self) -> float | None:
        return _changed(self._token, self._resumed)

    def _actors(self) -> float | None:
        """Returns when the last actor of this stretch had started."""
        try:
            text = (self.run.logs / "conductor.log").read_text()
        except FileNotFoundError:
            return None
        lines = [json.loads(line) for line in text.splitlines()]
        times = [_time(line["timestamp"]) for line in lines if line["event"] == ACTOR_STARTED]
        return times[-1] if times and times[-1] > self._resumed else None

    def _host(self) -> int:
        """Returns the session of the host; 0 if there is none yet."""
        line = re.compile(rf"-m ops\.host {re.escape(str(self.run.path.absolute()))} ")
        hosts = (p.pid for p in processes.listing() if line.search(p.command))
        return next((session_of(pid) for pid in hosts), 0)

    def _status(self) -> Status:
        return self.run.read_status()

    def _wait(self, done: Callable[[], object]) -> None:
        until = time.monotonic() + LIMIT_S
        while not done():
            status = self._status()
            if status.state in ("failed", "died") or time.monotonic() > until:
                raise SystemExit(f"it went wrong: {status.state}: {status.message}")
            if status.state == "finished" and not self.run.locked():
                return
            time.sleep(0.01)

    def _pippin(self, verb: str, *options: str) -> None:
        root = ["--root", str(self.run.path.parent)]
        what = [str(RECIPE)] if verb == "launch" else []
        command = [sys.executable, "-m", "ops.cli", verb, *what, *options, *root]
        subprocess.run(command, env=self._environment, check=True, stderr=subprocess.DEVNULL)


def _changed(file: Path, since: float) -> float | None:
    """Returns when a file was written, if that was after `since`."""
    try:
        when = file.stat().st_mtime
    except FileNotFoundError:
        return None
    return when if when > since else None


def _time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# ── the measurement ──────────────────────────────────────────────────────────────────────────────


def moments(count: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yields how each pause is asked for, and how many seconds after the moment it waits for."""
    for i in range(count):
        share = derive("pause bench", seed, i) / 2**64
        if i % START_EVERY == START_EVERY // 2:
            yield "starting", share * STARTING_S
        else:
            yield "stop" if i % STOP_EVERY == 0 else "pause", share * LATEST_S


def measure(folder: Path, count: int, seed: int, options: list[str]) -> tuple[list[Pause], bool]:
    """Returns the pauses, over as many runs as are needed, and whether all of these ended alike."""
    plain = Paused(folder, "plain", options)
    plain.launch()
    wanted = plain.finish()
    pauses: list[Pause] = []
    left, same, number = list(moments(count, seed)), wanted.state == "finished", 0
    while left:
        number += 1
        paused = Paused(folder, f"paused-{number}", options)
        paused.launch()
        while left and (pause := paused.pause(*left[0])) is not None:
            left.pop(0)
            if pauses:
                paused.describe_resume(pauses[-1])
            pauses.append(pause)
            say(f"  {len(pauses)}/{count}: {pause.how}, {pause.gone_s:.2f} s", err=True)
            paused.resume()
        ended = paused.finish()
        paused.describe_resume(pauses[-1])
        same = same and all(getattr(ended, d) == getattr(wanted, d) for d in DIGESTS)
    return pauses, same


def step_seconds(folder: Path, options: list[str], duty_cycle: float) -> float:
    """Returns the seconds of a step, evaluations not counted, of a run with this duty cycle."""
    rests = Paused(
        folder, f"duty-{duty_cycle:g}", [*options, "--set", f"power.duty_cycle={duty_cycle}"]
    )
    rests.launch()
    ended = rests.finish()
    return ended.seconds / max(ended.step, 1)


def load_seconds(run: RunDirectory) -> float:
    """Returns the seconds in which a sampler loads the model, its imports not counted."""
    command = [sys.executable, "-c", LOAD, str(run.recipe)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def quantile(values: list[float], share: float) -> float:
    """Returns the value at this share of the sorted values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def row(what: str, values: list[float]) -> list[str]:
    """Returns a line of the table."""
    if not values:
        return [what, "0", "", "", ""]
    numbers = [quantile(values, 0.5), quantile(values, 0.95), max(values)]
    return [what, str(len(values)), *(f"{n:.2f} s" for n in numbers)]


def main() -> int:
    """Prints the table. Returns 1 if a pause takes too long, or a run does not end like the undisturbed
    one.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--steps", type=int, default=150, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    changes = [*SMALL, f"algorithm.steps={asked.steps}", *asked.set]
    options = [word for change in changes for word in ("--set", change)]
    subprocess.run([sys.executable, "-m", "ops.cli", "seed"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        pauses, same = measure(Path(folder), asked.moments, asked.seed, options)
        load_s = load_seconds(RunDirectory(Path(folder) / "runs", "plain"))
        few = [*options, "--set", f"algorithm.steps={STEPS_TIMED}"]
        steps = {duty: step_seconds(Path(folder), few, duty) for duty in (1.0, 0.5)}
    gone = [p.gone_s for p in pauses]
    tokens = [p.token_s for p in pauses if p.token_s is not None]
    rows = [
        row("pause: until its processes are gone", gone),
        row("resume: until Ray has started", [p.ray_s for p in pauses if p.ray_s]),
        row("  then until the actors have", [p.actors_s for p in pauses if p.actors_s]),
        row("  in all, until the first new token", tokens),
    ]
    print_table(["", "times", "p50", "p95", "max"], rows)
    say(f"the model loads in {load_s:.2f} s of that, in each process that computes")
    ratio = steps[0.5] / steps[1.0]
    say(f"a step takes {steps[1.0]:.2f} s, at power.duty_cycle = 0.5 {ratio:.2f} times as long")
    say("the end: " + ("as undisturbed, bit for bit" if same else "NOT as undisturbed"))
    if asked.json:
        found = {"load_s": load_s, "same": same, "pauses": to_builtins(pauses)}
        found["step_s"] = {str(duty): seconds for duty, seconds in steps.items()}
        write_json(asked.json, {"settings": changes, **found})
    kept = quantile(gone, 0.95) < PAUSE_P95_S and max(gone) < PAUSE_MAX_S
    return 0 if same and kept and quantile(tokens, 0.95) < RESUME_S + load_s else 1


if __name__ == "__main__":
    sys.exit(main())
