"""Runs that older versions of Pippin wrote can be resumed; runs of a newer schema version are refused."""

import json
import shutil
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from ops.fault_injection.facts import Facts, differences
from ops.fault_injection.kills import FaultRuns, untoward
from ops.host import BAD_INPUT, DONE
from runtime import checkpoint, trajectory
from runtime.durable import sha256_file
from runtime.errors import BadInput
from runtime.rundir import RunDirectory
from runtime.trajectory import lists
from runtime.trajectory_log import TrajectoryLog, batches
from tests.golden.make import HERE, Expected, unpack

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("run-v*"))
V1 = GOLDEN[0]
DEPENDS_ON_NUMERICS = (
    "weights",
    "optimizer",
    "trajectories",
    "evals",
    "answers",
    "metrics",
    "tokens",
)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return unpack(V1, tmp_path / "golden")


def answers(run: RunDirectory) -> dict[tuple[int, int], list[int]]:
    """Returns the sampled tokens of the unfinished answers in the newest checkpoint, by prompt and sample."""
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    (path,) = newest.path.glob("unfinished-sample-*.arrow")
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        return sampled(reader.read_next_batch())


def sampled(batch: pa.RecordBatch) -> dict[tuple[int, int], list[int]]:
    where = zip(batch["prompt_index"].to_pylist(), batch["sample"].to_pylist())
    tokens, masks = lists(batch, "tokens"), lists(batch, "sampled")
    return {key: t[m].tolist() for key, t, m in zip(where, tokens, masks)}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_a_golden_run_is_resumed_to_its_end(servers, golden, tmp_path):
    """The end is equal bit for bit where this machine computes as the maker's did. Where another MLX version
    or another processor computes otherwise, everything that does not depend on numerics is equal.
    """
    fault_runs: FaultRuns = servers.first
    run = unpack(golden, tmp_path / "golden")
    expected = msgspec.json.decode((golden / "expected.json").read_bytes(), type=Expected)
    before, kept = run.trajectories.read_bytes(), answers(run)
    assert any(len(tokens) < 5 for tokens in kept.values()), "none is half-generated"
    ended = fault_runs.start(run)
    assert (ended.code, untoward(ended)) == (DONE, []), ended
    facts = fault_runs.examine(run)
    assert facts.problems == []
    different = differences(facts, expected.facts)
    if fault_runs.numerics() == expected.numerics:
        assert different == []
    else:
        assert [d for d in different if not d.startswith((*DEPENDS_ON_NUMERICS, "ledger"))] == []
        assert facts.ledger["pulled"] == expected.facts.ledger["pulled"]
        assert [line["step"] for line in facts.metrics] == [
            m["step"] for m in expected.facts.metrics
        ]
    # The log that was on disk at the pause is unchanged.
    assert run.trajectories.read_bytes().startswith(before)
    *_, next_step, _ = batches(run.trajectories)
    finished = sampled(next_step)
    assert all(finished[key][: len(tokens)] == tokens for key, tokens in kept.items())


def test_a_golden_run_is_small_and_has_no_paths_of_the_machine_that_made_it():
    files = [path for golden in GOLDEN for path in golden.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000 * len(GOLDEN)
    assert HERE in (V1 / "run" / "recipe.toml").read_text()
    for path in files:
        assert b"/tmp/" not in path.read_bytes() and b"pippin-faults" not in path.read_bytes(), path


def refused(servers, run: RunDirectory) -> str:
    """Returns the sentence with which the run is refused, after checking that nothing was changed."""
    before = {
        p: p.read_bytes()
        for p in run.path.rglob("*")
        if p.is_file() and not is_rewritten_by_any_start(p)
    }
    ended = servers.first.start(run)
    assert (ended.code, untoward(ended)) == (BAD_INPUT, []), ended
    after = {
        p: p.read_bytes()
        for p in run.path.rglob("*")
        if p.is_file() and not is_rewritten_by_any_start(p)
    }
    assert after == before
    return ended.result.sentence


def is_rewritten_by_any_start(path: Path) -> bool:
    return path.parent.name == "logs" or path.name in ("lock", "status.json")


def test_a_run_of_a_later_version_is_refused_by_name(servers, run):
    path = run.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema_version": 2}))
    sentence = f"{path}: schema version 2 is newer than this Pippin knows (1)"
    assert refused(servers, run) == sentence
    with pytest.raises(BadInput) as caught:
        run.read_status()
    assert str(caught.value) == sentence


def test_a_checkpoint_of_a_later_version_is_refused_by_name_not_passed_over(servers, run):
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    path = newest.path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema_version": 2}))
    signed(newest.path)
    sentence = f"{path}: schema version 2 is newer than this Pippin knows (1)"
    assert refused(servers, run) == sentence


def test_answers_of_a_later_version_are_refused_by_name(servers, run):
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None
    (path,) = newest.path.glob("unfinished-*.arrow")
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        batch = later(reader.read_next_batch())
    with path.open("wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    signed(newest.path)
    assert refused(servers, run) == f"{path}: trajectories of schema 3, this Pippin knows 2"


def test_a_log_of_a_later_version_is_refused_by_name(tmp_path):
    first = next(batches(V1 / "run" / "trajectories.log"))
    log = TrajectoryLog(tmp_path / "trajectories.log")
    log.append(later(first))
    log.close()
    with pytest.raises(BadInput) as caught:
        list(batches(tmp_path / "trajectories.log"))
    path = tmp_path / "trajectories.log"
    assert str(caught.value) == f"{path}: trajectories of schema 3, this Pippin knows 2"


def later(batch: pa.RecordBatch) -> pa.RecordBatch:
    version = str(trajectory.SCHEMA_VERSION + 1).encode()
    return batch.replace_schema_metadata({**batch.schema.metadata, b"pippin.schema": version})


def signed(folder: Path) -> None:
    """Rewrites the manifest's check sums to match the files that are there now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"] = {name: sha256_file(folder / name) for name in manifest["files"]}
    del manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": checkpoint._sum(manifest)}, sort_keys=True))


def test_the_facts_that_are_kept_are_those_that_are_compared():
    names = set(Facts.__struct_fields__)
    expected = json.loads((V1 / "expected.json").read_bytes())
    assert set(expected["facts"]) <= names
    assert set(DEPENDS_ON_NUMERICS) <= names


def test_unpacking_needs_nothing_that_is_not_committed(tmp_path):
    run = unpack(V1, tmp_path / "golden")
    assert sorted(p.name for p in V1.iterdir()) == ["expected.json", "model", "run"]
    shutil.rmtree(run.path.parent)
