"""The command `pippin report`: measures, writes report.html and report.json, prints a short table."""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from configs.schema import Settings
from configs.tasks import Jsonl, Task
from ops.terminal import say
from runtime.blas import load_blas
from runtime.durable import ORDINARY_FILE, nearest_existing, write_file
from runtime.errors import BadInput
from runtime.rundir import RunDirectory

LEASE_S = 600.0
ROUNDS = 5


def run(
    run: RunDirectory,
    against: Sequence[RunDirectory],
    out: Path | None,
    *,
    step: int | None,
    prompts: int | None,
) -> int:
    """Writes the report on a run. Raises BadInput, with nothing written, for what cannot be compared."""
    folder = out or run.path / "report"
    run.require()
    check_folder(folder)
    backend = load_blas(exact=False)  # imports of MLX come after this
    from ops.bench.report import print_table
    from ops.report.page import cells, headers, page

    report = examine(run, against, backend, step=step, prompts=prompts)
    folder.mkdir(parents=True, exist_ok=True)
    told = msgspec.json.format(msgspec.json.encode(report), indent=2)
    write_file(folder / "report.json", told, mode=ORDINARY_FILE)
    write_file(folder / "report.html", page(report).encode(), mode=ORDINARY_FILE)
    print_table(headers(report), [cells(report, standing) for standing in report.contestants])
    for claims in report.promise.values():
        for claim in claims:
            say(f"{claim.verdict}: {claim.sentence} (promised: {claim.needed})")
    for sentence in (*report.preferences, *report.comparisons):
        say(sentence)
    say(f"{folder / 'report.html'} and report.json")
    return 0


def examine(
    run: RunDirectory,
    against: Sequence[RunDirectory],
    backend: str,
    *,
    step: int | None,
    prompts: int | None,
    rounds: int = ROUNDS,
):
    """Returns the whole report. Holds the machine's lease while it computes."""
    from ops.report.contestants import contestants, held_out, side_of
    from ops.report.cost import cost_of
    from ops.report.findings import judged, notes, standing
    from ops.report.page import Report
    from ops.report.preferences import preference_sentences

    _check_names(run, against)
    side = side_of(run, step)
    others = [side_of(other, None) for other in against]
    compared = contestants(side, others)
    task, asked = held_out(side, others, prompts)
    settings = side.settings
    try:
        found, load = _measured(run.name, settings, compared, task, asked, rounds)
    finally:
        task.close()
    on = judged(found, len(asked))
    costs = {one.run.name: cost_of(one) for one in (side, *others)}
    promises, comparisons = _claims(compared, found, costs, on, asked)
    return Report(
        run=run.name,
        step=side.step,
        steps=settings.algorithm.steps,
        state=run.read_status().state,
        algorithm=settings.facts.label,
        task=task_text(settings.task),
        prompts=len(asked),
        judged=len(on.answers),
        texts=len(on.texts),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        backend=backend,
        batch=f"{load.rows} rows of {load.new_tokens} new tokens each",
        contestants=[standing(one, found.get(one.name), on, asked) for one in compared],
        promise=promises,
        comparisons=comparisons,
        costs=list(costs.values()),
        preferences=preference_sentences(side),
        notes=notes(compared, found, on, list(costs.values())),
    )


def _measured(name: str, settings: Settings, compared, task, asked, rounds: int):
    """Returns what was measured of each contestant, and the load, while it holds the lease."""
    from ops.report.measure import measure
    from policies.device import gpu_lease

    with gpu_lease().hold(f"pippin report {name}", LEASE_S):
        return measure(
            compared,
            task,
            asked,
            max_new_tokens=settings.eval.max_new_tokens or settings.sampling.max_new_tokens,
            slots=settings.sampling.slots,
            rounds=rounds,
            progress=lambda text: say(text, err=True),
        )


def _check_names(run: RunDirectory, against: Sequence[RunDirectory]) -> None:
    """Raises BadInput if a run is to be compared with itself, or twice."""
    names = [run.name, *(other.name for other in against)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"--against: {twice.pop()} is named twice")


def _claims(compared, found, costs, on, asked):
    """Returns the findings on the student: its promises by teacher, and a sentence for each other run."""
    from ops.report.findings import comparison, promise

    student = next(one for one in compared if one.role == "after")
    promises = {
        one.name: promise(one, student, found, on, asked)
        for one in compared
        if one.role == "teacher" and one.name in found
    }
    comparisons = [
        comparison(student, one, found, costs, on, asked)
        for one in compared
        if one.role == "against"
    ]
    return promises, comparisons


def check_folder(folder: Path) -> None:
    """Raises BadInput unless reports can be written there."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out: {folder} is a file; needs a folder, or a name that is free")
    existing = nearest_existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"--out: {existing} cannot be written")


def task_text(task: Task) -> str:
    """Returns a task and its settings in a few words."""
    tag = str(task.__struct_config__.tag)
    if isinstance(task, Jsonl):
        return f"{tag} ({Path(task.eval or task.train).name})"
    values = [f"{name} {value}" for name, value in msgspec.structs.asdict(task).items()]
    return f"{tag} ({', '.join(values)})" if len(values) < 3 else tag
