"""The command line. It parses the command; the work is in the modules beside it."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from ops.outcome import FAILED, FINE, exit_code
from ops.terminal import say
from runtime.errors import BadInput, PippinError
from runtime.home import PRIVATE_UMASK, tighten, tighten_home


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = build_parser().parse_args(arguments)
    if note := tighten_home():
        say(f"note: {note}", err=True)
    before = os.umask(PRIVATE_UMASK) if options.run in (_launch, _resume, _pause, _stop) else None
    try:
        return exit_code(lambda: options.run(options))
    finally:
        if before is not None:
            os.umask(before)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of every command and option."""
    parser = argparse.ArgumentParser(
        prog="pippin",
        description="Train small language models on one Mac: distillation, GRPO and its family, "
        "evolution strategies, supervised fine-tuning.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run, help: str, *, named: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        if named:
            command.add_argument("name", metavar="RUN", help="the run's name, or its folder")
        command.add_argument("--root", default="runs", help="folder of the runs (default: runs/)")
        return command

    _add_start_and_end(add)
    _add_views(add)
    _add_products(add)
    _add_checks(add)
    return parser


AddCommand = Callable[..., argparse.ArgumentParser]
"""Takes a command's name, its function and its help, and whether it is about one run."""


def _add_start_and_end(add: AddCommand) -> None:
    """Adds the commands that start, pause and end a run, and `check`, which reads the same recipe."""
    check = add("check", _check, "print what a recipe means and whether it fits this machine")
    launch = add("launch", _launch, "start a run")
    for command in (check, launch):
        _take_recipe(command, "configs/quickstart.toml")
    tokens = "print the first prompt token by token, too"
    check.add_argument("--prompt", action="store_true", help=tokens)
    launch.add_argument("--name", help="the run's name (default: the recipe's, numbered)")
    launch.add_argument("--detach", action="store_true", help="run in the background")
    add("pause", _pause, "free the GPU and the memory now; its process waits", named=True)
    resume = add("resume", _resume, "go on with a run that paused, stopped or died", named=True)
    resume.add_argument("--detach", action="store_true", help="run in the background")
    _take_trust(resume)
    add("stop", _stop, "pause a run and end its process", named=True)


def _add_views(add: AddCommand) -> None:
    """Adds the commands that say what runs do and did."""
    add("runs", _runs, "list the runs")
    status = add("status", _status, "say what a run is doing", named=True)
    status.add_argument("--json", action="store_true", help="one JSON object")
    ledger = add("ledger", _ledger, "account for a run's trajectories, and how long", named=True)
    ledger.add_argument("--json", action="store_true", help="one JSON object")
    add("watch", _watch, "follow a run's progress", named=True)
    logs = add("logs", _logs, "print what a run's actors wrote", named=True)
    logs.add_argument("--actor", help="one actor only, such as learner-0")
    logs.add_argument("--part", dest="actor", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    logs.add_argument("-n", type=int, default=40, help="lines of each actor (default 40)")
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more")
    add("dashboard", _dashboard, "print address and token of a run's Ray dashboard", named=True)


def _add_products(add: AddCommand) -> None:
    """Adds the commands that make something: a seedling, a checkpoint, a report, rows."""
    seed = add("seed", _seed, "raise the seedling, the small model of the quickstart")
    seed.add_argument("--seed", type=int, default=0, help="another seedling (default 0)")
    seed.add_argument("--again", action="store_true", help="forget the seedlings there are first")
    newest = "of this checkpoint (default: the newest)"
    export = add("export", _export, "write a run's weights as a checkpoint", named=True)
    export.add_argument("folder", metavar="DIR", help="where to; must not exist or be empty")
    export.add_argument("--step", type=int, help=newest)
    export.add_argument("--adapters", action="store_true", help="only the adapters, for mlx-lm")
    lossy = "quantise again (default: full precision): loses some of what was learned"
    export.add_argument("--quantize", action="store_true", help=lossy)
    _take_trust(export)
    report = add("report", _report, "measure teacher, student before and after", named=True)
    others = "runs whose students to compare, too"
    report.add_argument("--against", nargs="+", default=[], metavar="RUN", help=others)
    folder = "where to (default: report/ in the run's folder)"
    report.add_argument("--out", metavar="DIR", help=folder)
    report.add_argument("--step", type=int, help=newest)
    report.add_argument("--prompts", type=int, help="held-out prompts (default: the recipe's)")
    _take_trust(report)
    make = add("make-data", _make_data, "let a teacher make rows to learn from")
    make.add_argument("--out", required=True, metavar="FILE", help="the JSONL that is made")
    _take_recipe(make, "configs/data/rejection.toml")
    make.add_argument("--again", action="store_true", help="forget what was made there before")


def _add_checks(add: AddCommand) -> None:
    """Adds the commands that examine this machine."""
    doctor = add("doctor", _doctor, "check this machine")
    about = "a checkpoint's folder or hub id: how far its sampler and learner are apart"
    doctor.add_argument("model", nargs="?", default="", metavar="MODEL", help=about)
    faults = "kill fault runs and compare, too (a minute)"
    doctor.add_argument("--durability", action="store_true", help=faults)
    bench = add("bench", _bench, "measure speed, memory and learning: see its list")
    listed = "a benchmark's name; none lists them"
    bench.add_argument("which", nargs="?", default="list", help=listed)
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="its own options")


def _take_recipe(command: argparse.ArgumentParser, example: str) -> None:
    """Lets the command take a recipe, and settings that override the recipe's."""
    command.add_argument("recipe", metavar="RECIPE", help=f"a TOML file, such as {example}")
    text = "override a setting"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def _take_trust(command: argparse.ArgumentParser) -> None:
    """Lets the command take a run that came from another user or machine."""
    text = "also a run that another user or machine has made: it may execute code of theirs"
    command.add_argument("--trust", action="store_true", help=text)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


def _check(options: argparse.Namespace) -> int:
    from ops.check import run

    return run(options.recipe, options.set, prompt=options.prompt)


def _launch(options: argparse.Namespace) -> int:
    from ops.launch import prepare

    run, _ = prepare(options.recipe, options.set, options.name, Path(options.root))
    return _go(run, options.detach)


def _pause(options: argparse.Namespace) -> int:
    from ops.ask import halt

    return halt(_run(options), "pause", end=False)


def _stop(options: argparse.Namespace) -> int:
    from ops.ask import halt

    return halt(_run(options), "stop", end=True)


def _resume(options: argparse.Namespace) -> int:
    from ops.ask import may_start, resume_there

    run = _trusted(options)
    if not may_start(run):
        return resume_there(run)
    return _go(run, options.detach)


def _go(run, detached: bool) -> int:
    from ops.attend import become
    from ops.launch import detach

    say(f"run {run.name} in {run.path}", err=True)
    if sentence := tighten(run.path):  # its folder was open to others
        say(f"note: {sentence}", err=True)
    if detached:
        pid = detach(run)
        say(f"running in the background (pid {pid}); pippin watch {run.name}", err=True)
        return FINE
    become(run)
    raise AssertionError("this process has been replaced")


def _runs(options: argparse.Namespace) -> int:
    from ops.show import runs_table
    from runtime.rundir import RunDirectory, runs

    statuses = []
    for path in runs(Path(options.root)):
        try:
            statuses.append(RunDirectory(path.parent, path.name).read_status())
        except BadInput as error:
            say(str(error), err=True)
    say(runs_table(statuses) if statuses else f"no runs in {options.root}")
    return FINE


def _status(options: argparse.Namespace) -> int:
    from ops.show import status_text

    status = _run(options).read_status()
    if options.json:
        say(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        say(status_text(status), wrap=True)
    return FINE


def _ledger(options: argparse.Namespace) -> int:
    from ops.ledger import account, account_parts

    found = account(_run(options))
    if options.json:
        say(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        say(*account_parts(found), wrap=True)
    if found.problem:
        raise PippinError(found.problem)
    return FINE if found.adds_up else FAILED


def _watch(options: argparse.Namespace) -> int:
    from ops.show import LiveLine, follow, status_text

    status = follow(_run(options).read_status, LiveLine())
    say(status_text(status), wrap=True)
    return FINE if status.state == "finished" else FAILED


def _logs(options: argparse.Namespace) -> int:
    from ops.logs import print_logs

    run = _run(options)
    run.require()
    print_logs(run, options.actor, options.n, options.follow)
    return FINE


def _dashboard(options: argparse.Namespace) -> int:
    from ops.session import read_session

    session = read_session(_run(options))
    if not session.dashboard:
        raise BadInput("this run has no dashboard: dashboard.enabled = false")
    say(f"address: {session.dashboard}")
    say(f"token:   {Path(session.token_path).read_text()}")
    say(f"metrics: {session.metrics} (Prometheus; names begin with ray_pippin_)")
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
    say(f"{'raised' if fresh else 'already there'}: {folder}")
    return FINE


def _export(options: argparse.Namespace) -> int:
    from ops.export import export
    from runtime.blas import load_blas

    load_blas(exact=False)
    target = Path(options.folder)
    told: list[str] = []
    step = export(
        _trusted(options),
        target,
        step=options.step,
        adapters=options.adapters,
        quantize=options.quantize,
        tell=told.append,
    )
    what = "adapters" if options.adapters else "checkpoint"
    say(f"{what} of step {step} in {target}", *told)
    return FINE


def _report(options: argparse.Namespace) -> int:
    from ops.report.command import run

    if options.prompts is not None and options.prompts < 1:
        raise BadInput(f"--prompts: needs a number of at least 1, got {options.prompts}")
    return run(
        _trusted(options),
        [_trusted(options, name) for name in options.against],
        Path(options.out) if options.out else None,
        step=options.step,
        prompts=options.prompts,
    )


def _make_data(options: argparse.Namespace) -> int:
    from ops.make.command import run

    return run(options.recipe, options.set, Path(options.out), options.again)


def _doctor(options: argparse.Namespace) -> int:
    from ops.doctor import examine

    return FINE if examine(options.durability, options.model) else FAILED


def _bench(options: argparse.Namespace) -> int:
    from ops.bench.run import run

    return run(options.which, options.rest)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────


def _run(options: argparse.Namespace):
    """Returns the run that the command is about."""
    return _named(options.name, options.root)


def _trusted(options: argparse.Namespace, name: str | None = None):
    """Returns the run, or another one. Raises BadInput unless it is the user's own, or trusted."""
    from ops.trust import require_trusted

    run = _named(name or options.name, options.root)
    require_trusted(run, options.trust)
    return run


def _named(name: str, root: str):
    """Returns the run of a name, or of a path to its folder."""
    from runtime.rundir import RunDirectory

    path = Path(name)
    if path.name != name:
        return RunDirectory(path.absolute().parent, path.name)
    return RunDirectory(Path(root), name)


if __name__ == "__main__":
    sys.exit(main())
