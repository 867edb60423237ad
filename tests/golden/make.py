"""Makes a golden run directory: a run that is paused in the middle of a step, and how it ends.

    python -m tests.golden.make tests/golden/run-v1

One is kept for each schema version that was ever released, as that version wrote it, and must stay
resumable: this makes a new one when the version is raised; the old ones are never made again.

    run-v1/model/          the model
    run-v1/run/            the run directory; its recipe names the model by HERE
    run-v1/expected.json   the facts of the finished run, and how the machine computed that made them
"""

import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import msgspec

from actors.unfinished import take
from ops.fault_injection.facts import Facts
from ops.fault_injection.kills import FaultRuns
from ops.fault_injection.server_pool import ForkServerPool
from ops.host import DONE, PAUSED
from runtime import checkpoint
from runtime.rundir import RunDirectory

HERE = "@HERE@"
"""Stands for the folder in the recipe."""
PROGRAM, STEP, ROWS, TOKENS = "grpo", 3, 12, 3
"""Paused in the middle of this step, which has so many rows; found by pausing every few tokens."""
LEFT_OUT = shutil.ignore_patterns("lock", "logs", "pause.json", "weights")


class Expected(msgspec.Struct, kw_only=True):
    """The content of expected.json."""

    made_with: dict[str, str]
    numerics: str
    facts: Facts


def make(target: Path) -> None:
    """Make `target`, which must not be there yet."""
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, ForkServerPool(Path(folder), size=1) as servers:
        fault_runs = servers.first
        shutil.copytree(fault_runs.model, target / "model")
        run = paused(fault_runs)
        shutil.copytree(run.path, target / "run", ignore=LEFT_OUT)
        recipe = target / "run" / "recipe.toml"
        recipe.write_text(recipe.read_text().replace(str(fault_runs.folder), HERE))
        assert fault_runs.start(run).code == DONE
        expected = Expected(
            made_with={name: version(name) for name in ("pippin", "mlx", "pyarrow")},
            numerics=fault_runs.numerics(),
            facts=fault_runs.examine(run),
        )
        assert expected.facts.problems == []
    told = msgspec.json.format(msgspec.json.encode(expected), indent=1)
    (target / "expected.json").write_bytes(told + b"\n")


def paused(fault_runs: FaultRuns) -> RunDirectory:
    """A run with a checkpoint behind it, half-generated rows, and others that are not begun."""
    run = fault_runs.new(PROGRAM)
    while fault_runs.start(run, plans=[("sample.token", TOKENS, "pause")]).code == PAUSED:
        newest, _ = checkpoint.newest(run.checkpoints)
        rows = take(newest.path).get(("sample", STEP)) if newest else None
        if rows and rows.num_rows < ROWS and "interrupted" in rows["stop_reason"].to_pylist():
            return run
    raise AssertionError("it was never paused there")


def unpack(golden: Path, folder: Path) -> RunDirectory:
    """A copy of a golden run, in a folder, that can be resumed."""
    shutil.copytree(golden, folder, dirs_exist_ok=True)
    run = RunDirectory(folder, "run")
    for missing in (run.logs, run.weights, run.path / "evals"):
        missing.mkdir(exist_ok=True)
    run.recipe.write_text(run.recipe.read_text().replace(HERE, str(folder)))
    return run


if __name__ == "__main__":
    make(Path(sys.argv[1]))
