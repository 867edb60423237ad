"""Shows a run in a terminal: a live line, a table of runs, a status in words."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from ops.interval import SMALLEST, share_text
from ops.table import Table
from ops.terminal import LiveText, write
from runtime.status import REWARD_MARGIN, EvalResult, Status

COLOURS = {"running": "green", "finished": "green", "paused": "yellow", "failed": "red"}


class LiveLine:
    """Rewrites one line while the run goes on, or prints one line per change where there is no
    terminal.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = LiveText(self._out)
        self._at_terminal = self._live.shown
        self._shown: tuple[int, str, int] = (-1, "", 0)

    def __call__(self, status: Status) -> None:
        """Shows a status, if it differs from the last."""
        for result in status.evals[self._shown[2] :]:
            self._live.say(eval_line(result, base_of(result, status)))
        shown = status.message if status.state == "paused" else status.doing
        now = (status.step, shown, len(status.evals))
        if self._at_terminal:
            share = status.step / status.steps if status.steps else None
            self._live.rewrite(progress_line(status), share)
        elif status.step != self._shown[0] and self._due(status):
            write(self._out, progress_line(status))
        elif status.state == "paused" and status.message != self._shown[1]:
            write(self._out, f"paused: {status.message}")
        elif status.step == 0 and status.doing != self._shown[1]:
            write(self._out, status.doing)
        self._shown = now

    def end(self) -> None:
        """Leaves the last line standing."""
        self._live.end(keep=True)

    def _due(self, status: Status) -> bool:
        return status.step % max(status.steps // 20, 1) == 0 or status.step == status.steps


def progress_line(status: Status) -> str:
    """Returns step, time left, how good the answers are, and tokens per second, in one line."""
    m = status.metrics
    if not status.steps:
        return status.doing or status.state
    parts = [f"step {status.step}/{status.steps}"]
    if status.eta_s is not None and status.state == "running":
        parts.append(f"{duration(status.eta_s)} left")
    if "reward_mean" in m:
        parts += [f"pass@1 {m['pass_at_1']:.3f}", f"reward {m['reward_mean']:.3f}"]
    elif "loss" in m:
        parts.append(f"loss {m['loss']:.4f}")
    if "preference_accuracy" in m:
        parts.append(f"accuracy {m['preference_accuracy']:.3f} margin {m['reward_margin']:.3f}")
    if m.get("sampler_tokens_per_s"):
        parts.append(f"sample {m['sampler_tokens_per_s']:,.0f} tok/s")
    if m.get("learner_tokens_per_s"):
        parts.append(f"learn {m['learner_tokens_per_s']:,.0f} tok/s")
    if status.state == "paused":
        parts.append(f"paused for {_since(status)}: {status.message}")
    elif status.state != "running" or not status.step:
        parts.append(status.doing or status.state)
    return "  ".join(parts)


def eval_line(result: EvalResult, base: EvalResult) -> str:
    """Returns one evaluation, against the base."""
    which = "the base" if result.step == 0 else f"step {result.step}"
    if result.score is None:
        return f"held-out {result.metric} of {which}: none, no answer could be scored"
    gain = ""
    if result.step != base.step and base.score is not None:
        gain = f", {result.score - base.score:+.3f} over the base"
    if result.metric == REWARD_MARGIN:  # a mean, not a share
        sure = f" ± {result.stderr:.3f}" if result.stderr >= SMALLEST else ""
        shown = f"{result.score:.3f}{sure}"
    else:
        shown = share_text(result.score, result.stderr, result.n)
    return f"held-out {result.metric} of {which}: {shown} (n = {result.n}){gain}"


def base_of(result: EvalResult, status: Status) -> EvalResult:
    """Returns the first evaluation by the same metric."""
    return status.of_metric(result.metric)[0]


def first_and_last(status: Status) -> list[str]:
    """Returns, for each metric that was taken more than once, the base's line and the last one's."""
    lines = []
    for metric in dict.fromkeys(result.metric for result in status.evals):
        results = status.of_metric(metric)
        if len(results) > 1:
            lines += [eval_line(results[0], results[0]), eval_line(results[-1], results[0])]
    return lines


def status_text(status: Status) -> str:
    """Returns a status for reading."""
    lines = [f"{status.name}: {status.state}, step {status.step} of {status.steps}"]
    if status.doing or status.state == "paused":
        lines.append(f"  {status.doing or 'paused'}, for {_since(status)}")
    if status.message:
        lines.append(f"  {status.message}")
    lines += [f"  {eval_line(e, base_of(e, status))}" for e in status.evals]
    ledger = status.ledger
    gone = {**_counts(ledger.get("dropped")), **_counts(ledger.get("failed"))}
    reasons = "".join(f", {count:,} {reason}" for reason, count in gone.items())
    lines.append(
        f"  trajectories: {ledger.get('pulled', 0):,} pulled = {ledger.get('trained', 0):,} trained"
        f"{reasons}, {ledger.get('in_flight', 0):,} in flight"
    )
    if status.metrics and status.state != "paused":
        lines.append("  " + progress_line(status))
    if status.alive:
        lines.append("  " + machine_line(status))
    if status.state in ("running", "pausing") and status.dashboard:
        lines.append(f"  dashboard: {status.dashboard} (pippin dashboard {status.name})")
    return "\n".join(lines)


def machine_line(status: Status) -> str:
    """Returns what the run takes of the machine, and what the machine says of itself."""
    machine = status.machine
    parts = [
        f"{machine.memory_bytes / 1e9:.2f} GB in memory"
        if status.state != "paused"
        else "no memory held"
    ]
    parts.append(f"{machine.free_disk_bytes / 1e9:.1f} GB of disk free")
    if machine.on_battery is not None:
        parts.append("on battery" if machine.on_battery else "on mains")
    if machine.thermal_pressure is not None:
        parts.append(f"thermal pressure {machine.thermal_pressure}")
    if machine.duty_cycle < 1:
        parts.append(f"duty cycle {machine.duty_cycle:g}")
    return "machine: " + ", ".join(parts)


def _since(status: Status) -> str:
    """Returns the time since the present activity began; a clock that was set back says 0."""
    return duration(max(time.time() - status.since, 0)) if status.since else "?"


def runs_table(statuses: list[Status]) -> Table:
    """Returns one row a run, with its first metric: pass@1, unless nothing judges its answers."""
    rows = [
        (
            s.name,
            s.state,
            f"{s.step}/{s.steps}",
            _score(first_metric(s)[:1]),
            _score(first_metric(s)[1:][-1:]),
            first_metric(s)[0].metric if s.evals else "",
            s.doing if s.state == "running" else s.message,
        )
        for s in statuses
    ]
    return Table(
        header=("run", "state", "step", "base", "last", "metric", "doing"),
        rows=rows,
        left=(0, 1, 2, 5, 6),
        gives_way=(6, 5, 0),
        colours=COLOURS,
    )


def first_metric(status: Status) -> list[EvalResult]:
    """Returns the evaluations by the metric that was taken first, oldest first; none without any."""
    return status.of_metric(status.evals[0].metric) if status.evals else []


def duration(seconds: float) -> str:
    """Returns seconds as people write them."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def follow(read: Callable[[], Status], show: LiveLine, poll_s: float = 0.5) -> Status:
    """Shows a run until it ends; returns the last status."""
    try:
        while True:
            status = read()
            show(status)
            if not status.alive:
                return status
            time.sleep(poll_s)
    finally:
        show.end()


def _score(results: list[EvalResult]) -> str:
    return "".join("none" if r.score is None else f"{r.score:.3f}" for r in results)


def _counts(value: object) -> dict[str, int]:
    return {str(k): int(v) for k, v in value.items()} if isinstance(value, dict) else {}
