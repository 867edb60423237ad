"""A preference run as a person sees it: of rows of `make-data`, in `status`, `watch`, `ledger`, `report`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.dump import to_toml
from ops.cli import main
from ops.report import measure
from ops.report.measure import surprise
from policies.load import load_policy
from runtime.rundir import RunDirectory
from runtime.tasks.open import open_task
from tests.actors.tiny import GRADED, go, preference, preferences
from tests.ops.making import ROOT, local, made, rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(measure, "ROUND_S", 1e-9)


def finished(folder: Path, name: str, **changes) -> RunDirectory:
    """A run that is done, as `launch` leaves it."""
    wanted = preference(folder, **changes)
    run = RunDirectory(folder / "runs", name)
    run.create(to_toml(wanted), {})
    assert go(wanted, run).state == "finished"
    return run


def test_rows_that_make_data_wrote_are_learned_from_as_they_are(tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    wanted = local(
        tmp_path, GRADED, method={"name": "best_of_n", "prompts": 30, "samples": 4},
        output={"name": "preference"},
    )  # fmt: skip
    made(wanted, out)
    pairs = rows(out)
    assert len(pairs) >= 4 and {"prompt", "chosen", "rejected"} <= pairs[0].keys()
    run = finished(tmp_path, "made", task__train=str(out))
    status = run.read_status()
    assert status.ledger["trained"] == status.ledger["pulled"] == 4 * 6 * 2
    assert status.of_metric("preference_accuracy")[-1].n >= 1


def test_every_command_shows_the_held_out_preferences(tmp_path: Path, capsys):
    root = ["--root", str(tmp_path / "runs")]
    run = finished(tmp_path, "pairs")

    def said(*command: str) -> str:
        capsys.readouterr()  # what was printed before
        assert main([*command, *root]) == 0
        return capsys.readouterr().out

    status = json.loads(said("status", "pairs", "--json"))
    taken = {(e["step"], e["metric"]): e for e in status["evals"]}
    assert {metric for _, metric in taken} == {"preference_accuracy", "reward_margin"}
    last = taken[4, "preference_accuracy"]
    assert (last["n"], last["failed"]) == (3, 0)
    assert last["mean_tokens"] < 5, "the prompt is no part of the answer"
    for text in (said("status", "pairs"), said("watch", "pairs")):
        assert f"held-out preference_accuracy of step 4: {last['score']:.3f}" in text
        assert "held-out reward_margin of step 4" in text
    assert "preference_accuracy" in said("runs")
    assert "it adds up" in said("ledger", "pairs")
    report = said("report", "pairs")
    sentence = f"held-out preference_accuracy: 0.500 before, {last['score']:.3f} ±"
    assert sentence in report
    assert sentence in (run.path / "report" / "report.html").read_text()
    assert said("export", "pairs", str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_perplexity_of_a_report_is_not_that_of_undesirable_answers(tmp_path: Path):
    wanted = preference(tmp_path, rows="labels", algorithm__loss={"name": "kto"})
    task = open_task(wanted.task, wanted.seed)
    asked = [task.prompt("eval", i) for i in range(4)]
    policy = load_policy(wanted.model, Path(wanted.model.path), wanted.seed)
    nats, _ = surprise(policy, asked)
    assert [n is not None for n in nats] == [prompt.desirable for prompt in asked]
    assert {prompt.desirable for prompt in asked} == {True, False}


def test_half_a_pair_is_refused_in_one_sentence(tmp_path: Path):
    recipe = tmp_path / "pairs.toml"
    recipe.write_text(to_toml(preference(tmp_path)))
    path = preferences(tmp_path, "pairs")
    path.write_text('{"prompt": "a", "chosen": "b"}\n')
    launch = [sys.executable, "-m", "ops.cli", "launch", str(recipe), "--name", "x"]
    done = subprocess.run(
        [*launch, "--root", str(tmp_path / "runs")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    needed = f'pippin: {path}, line 1: needed the column "rejected", got "prompt", "chosen"'
    assert done.stderr.splitlines()[-1] == needed and "Traceback" not in done.stderr
