"""The command line. Decides what is asked for and how it ends; the work is in the modules beside it.

Exit codes: 0 fine, 1 failure, 2 bad input, 130 interrupted. What Pippin has to say about an error is one
sentence on stderr; a traceback is a mistake of ours.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import msgspec

from configs.errors import SettingsError
from runtime.errors import BadInput, Interrupted, PippinError

FINE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
STOP_S = 120.0
"""How long `stop` waits for the end of the phase under way."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (BadInput, SettingsError) as error:
        return _say(error, BAD_INPUT)
    except Interrupted as error:
        return _say(error, INTERRUPTED)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except PippinError as error:
        return _say(error, FAILED)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(
        prog="pippin",
        description="GRPO and supervised fine-tuning of small language models on one Mac.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run, help: str, *, named: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        if named:
            command.add_argument("name", metavar="RUN", help="the run's name, or its folder")
        command.add_argument("--root", default="runs", help="folder of the runs (default: runs/)")
        return command

    for name, body, text in (
        ("check", _check, "print what a recipe means and whether it fits this machine"),
        ("launch", _launch, "start a run"),
    ):
        command = add(name, body, text)
        command.add_argument(
            "recipe", metavar="RECIPE", help="a TOML file, such as configs/quickstart.toml"
        )
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting"
        )
        if name == "launch":
            command.add_argument("--name", help="the run's name (default: the recipe's, numbered)")
            command.add_argument("--detach", action="store_true", help="run in the background")
    resume = add(
        "resume", _resume, "go on with a run that stopped, from its checkpoint", named=True
    )
    resume.add_argument("--detach", action="store_true", help="run in the background")
    add("stop", _stop, "stop a run between two phases; resume goes on with it", named=True)
    add("runs", _runs, "list the runs")
    status = add("status", _status, "say what a run is doing", named=True)
    status.add_argument("--json", action="store_true", help="one JSON object")
    add("watch", _watch, "follow a run's progress", named=True)
    logs = add("logs", _logs, "print what a run's parts wrote", named=True)
    logs.add_argument("--part", help="one part only, such as learner-0")
    logs.add_argument("-n", type=int, default=40, help="lines of each part (default 40)")
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more")
    add("dashboard", _dashboard, "print address and token of a run's Ray dashboard", named=True)
    seed = add("seed", _seed, "raise the seedling, the small model of the quickstart")
    seed.add_argument("--seed", type=int, default=0, help="another seedling (default 0)")
    seed.add_argument("--again", action="store_true", help="forget the seedlings there are first")
    export = add("export", _export, "write a run's weights as a checkpoint", named=True)
    export.add_argument("folder", metavar="DIR", help="where to; must not exist or be empty")
    export.add_argument("--step", type=int, help="of this checkpoint (default: the newest)")
    export.add_argument("--adapters", action="store_true", help="only the adapters, for mlx-lm")
    export.add_argument("--dequantize", action="store_true", help="as full-precision weights")
    add("doctor", _doctor, "check this machine")
    bench = add("bench", _bench, "measure: decoder, loss memory, quickstart")
    bench.add_argument(
        "which", nargs="?", default="list", help="a benchmark's name; none lists them"
    )
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="its own options")
    return parser


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


def _check(options: argparse.Namespace) -> int:
    from ops.check import run

    return run(options.recipe, options.set)


def _launch(options: argparse.Namespace) -> int:
    from ops.launch import prepare

    run, _ = prepare(options.recipe, options.set, options.name, Path(options.root))
    return _go(run, options.detach)


def _resume(options: argparse.Namespace) -> int:
    from runtime.errors import BadInput

    run = _run(options)
    status = run.read_status()
    if status.state in ("starting", "running"):
        raise BadInput(f"run {run.name!r} is running already")
    if status.state == "finished":
        raise BadInput(f"run {run.name!r} has finished; there is nothing to go on with")
    return _go(run, options.detach)


def _go(run, detached: bool) -> int:
    from ops.launch import detach
    from ops.show import LiveLine, eval_line
    from ops.supervise import supervise

    print(f"run {run.name} in {run.path}", file=sys.stderr)
    if detached:
        pid = detach(run)
        print(f"running in the background (pid {pid}); pippin watch {run.name}", file=sys.stderr)
        return FINE
    show = LiveLine()
    try:
        status = supervise(run, show)
    except Interrupted:
        show.end()
        status = run.read_status()
        raise Interrupted(
            f"stopped after step {status.step}; go on with: pippin resume {run.name}"
        ) from None
    finally:
        show.end()
    if len(status.evals) > 1:
        print(eval_line(status.evals[0], status.evals[0]))
        print(eval_line(status.evals[-1], status.evals[0]))
    print(f"finished: pippin status {run.name}, pippin export {run.name} DIR, files in {run.path}")
    return FINE


def _stop(options: argparse.Namespace) -> int:
    from ops.show import progress_line

    run = _run(options)
    if run.read_status().state not in ("starting", "running"):
        raise BadInput(f"run {run.name!r} is not running")
    run.ask_to_stop()
    deadline = time.monotonic() + STOP_S
    while run.locked() and time.monotonic() < deadline:
        time.sleep(0.1)
    status = run.read_status()
    if run.locked():
        raise PippinError(
            f"asked, but it is still {status.doing or status.state}: it stops after that"
        )
    print(f"{status.state}: {progress_line(status)}; go on with: pippin resume {run.name}")
    return FINE


def _runs(options: argparse.Namespace) -> int:
    from ops.show import runs_table
    from runtime.rundir import RunDirectory, runs

    statuses = []
    for path in runs(Path(options.root)):
        try:
            statuses.append(RunDirectory(path.parent, path.name).read_status())
        except BadInput as error:
            print(error, file=sys.stderr)
    print(runs_table(statuses) if statuses else f"no runs in {options.root}")
    return FINE


def _status(options: argparse.Namespace) -> int:
    from ops.show import status_text

    status = _run(options).read_status()
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        print(status_text(status))
    return FINE


def _watch(options: argparse.Namespace) -> int:
    from ops.show import LiveLine, follow, status_text

    status = follow(_run(options).read_status, LiveLine())
    print(status_text(status))
    return FINE if status.state == "finished" else FAILED


def _logs(options: argparse.Namespace) -> int:
    from ops.logs import print_logs

    run = _run(options)
    run.require()
    print_logs(run, options.part, options.n, options.follow)
    return FINE


def _dashboard(options: argparse.Namespace) -> int:
    from ops.session import read_session

    session = read_session(_run(options))
    if not session.dashboard:
        raise BadInput("this run has no dashboard: dashboard.enabled = false")
    print(f"address: {session.dashboard}")
    print(f"token:   {Path(session.token_path).read_text()}")
    print(f"metrics: {session.metrics} (Prometheus; names begin with ray_pippin_)")
    return FINE


def _seed(options: argparse.Namespace) -> int:
    from ops.seed import ensure_seedling, remove_seedlings
    from ops.show import LiveLine
    from runtime.blas import load_blas

    if options.again:
        remove_seedlings()
    load_blas(exact=False)
    show = LiveLine()
    folder, fresh = ensure_seedling(options.seed, show)
    show.end()
    print(f"{'raised' if fresh else 'already there'}: {folder}")
    return FINE


def _export(options: argparse.Namespace) -> int:
    from ops.export import export
    from runtime.blas import load_blas

    load_blas(exact=False)
    target = Path(options.folder)
    step = export(
        _run(options),
        target,
        step=options.step,
        adapters=options.adapters,
        dequantize=options.dequantize,
    )
    what = "adapters" if options.adapters else "checkpoint"
    print(f"{what} of step {step} in {target}")
    return FINE


def _doctor(options: argparse.Namespace) -> int:
    from ops.doctor import examine

    return FINE if examine() else FAILED


def _bench(options: argparse.Namespace) -> int:
    from ops.bench.run import run

    return run(options.which, options.rest)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────


def _run(options: argparse.Namespace):
    """The run that a name, or a path to its folder, means."""
    from runtime.rundir import RunDirectory

    path = Path(options.name)
    if path.name != options.name:
        return RunDirectory(path.absolute().parent, path.name)
    return RunDirectory(Path(options.root), options.name)


def _say(what: object, code: int) -> int:
    print(f"pippin: {what}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
