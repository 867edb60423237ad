"""The report has the right numbers of the right model, on runs so small that they can be counted by hand."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from configs.algorithms.distillation import FromTeacher, TextOnly
from configs.dump import to_toml
from configs.schema import Settings
from configs.teachers import EndpointTeacher, LocalTeacher
from ops.cli import main
from ops.report import measure
from ops.report.command import examine
from ops.report.contestants import Contestant, contestants, side_of
from ops.report.measure import surprise
from runtime.errors import BadInput
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.tasks.open import open_task
from tests.actors.tiny import distilled, go, prompts, settings, teacher

EVERY_STEP = {"prompts": 3, "every_steps": 1}


class Bench:
    """A folder with finished runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task = {"name": "jsonl", "train": str(prompts(folder)), "response": "answer"}

    def made(self, name: str, wanted: Settings, stop_after: int | None = None) -> RunDirectory:
        run = RunDirectory(self.folder / "runs", name)
        if not run.path.exists():
            run.create(to_toml(wanted), {})
            go(wanted, run, stop_after=stop_after)
        return run

    def distilled(self) -> RunDirectory:
        return self.made("distilled", distilled(self.folder, eval=EVERY_STEP))

    def from_data(self) -> RunDirectory:
        sft = {"name": "sft", "steps": 4, "rows_per_step": 8}
        wanted = settings(self.folder, task=self.task, algorithm=sft, eval=EVERY_STEP)
        return self.made("data-alone", wanted)

    def report(self, *options: str, run: str = "distilled") -> int:
        return main(["report", run, "--root", str(self.folder / "runs"), *options])


@pytest.fixture(autouse=True)
def once_a_round(monkeypatch):
    """Measures speed in one round only, which is enough here."""
    monkeypatch.setattr(measure, "ROUND_S", 1e-9)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPPIN_HOME", str(folder / "home"))
        made = Bench(folder)
        made.distilled()
        made.from_data()
    return made


@pytest.fixture(autouse=True)
def home(bench: Bench, monkeypatch) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(bench.folder / "home"))


class Tags(HTMLParser):
    """Collects the tags of a page and checks that every tag that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [v for k, v in attrs if k in ("href", "src") and v]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def plain_nats(one: Contestant, prompt) -> tuple[float, int]:
    """−log p of a right answer and its end, token after token, from all logits at once."""
    policy = one.load()
    before = policy.tokenizer.prompt(prompt.messages)
    answer = [*policy.tokenizer.encode(prompt.demonstration), policy.tokenizer.stop_token()]
    logits = np.array(policy.model(mx.array([[*before, *answer]]))[0].astype(mx.float32))
    total = 0.0
    for i, token in enumerate(answer, start=len(before)):
        row = logits[i - 1].astype(np.float64)
        total -= row[token] - math.log(np.exp(row).sum())
    return total, len(answer)


# ── what it says ─────────────────────────────────────────────────────────────────────────────────


def test_teacher_and_students_are_measured_and_the_page_needs_nothing(
    bench: Bench, tmp_path, capsys
):
    assert bench.report("--against", "data-alone", "--out", str(tmp_path / "out")) == 0
    said = json.loads((tmp_path / "out" / "report.json").read_text())
    by_name = {one["name"]: one for one in said["contestants"]}
    assert [one["role"] for one in said["contestants"]] == ["teacher", "before", "after", "against"]
    # Greedy, on the same prompts: what the runs themselves found.
    evals = bench.distilled().read_status().evals
    assert by_name["student before"]["quality"] == evals[0].score
    assert by_name["student after"]["quality"] == evals[-1].score
    data = bench.from_data().read_status()
    assert by_name["student of data-alone"]["quality"] == data.evals[-1].score
    learned = by_name["student of data-alone"]["perplexity_per_token"]
    assert learned < by_name["student before"]["perplexity_per_token"]
    assert by_name["student before"]["parameters"] < by_name["teacher"]["parameters"] / 3
    stored = sum(
        a.nbytes for a in mx.load(str(bench.folder / "teacher" / "model.safetensors")).values()
    )
    assert by_name["teacher"]["weights_bytes"] == stored == 4 * by_name["teacher"]["parameters"]
    for one in said["contestants"]:
        assert len(one["rounds"]) == 5 and min(one["rounds"]) <= one["tokens_per_s"] <= max(
            one["rounds"]
        )
        assert one["peak_bytes"] > one["weights_bytes"]
    page = (tmp_path / "out" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert (tags.open, tags.addresses, "script" in tags.seen, "svg" in tags.seen) == (
        [],
        [],
        False,
        True,
    )
    printed = capsys.readouterr().out
    for claim in said["promise"]["teacher"]:
        assert claim["sentence"] in printed
    assert all(sentence in printed for sentence in said["comparisons"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_costs_are_the_sums_of_the_metrics_up_to_the_step(bench: Bench):
    run = bench.distilled()
    lines = [line for line in run.read_lines("metrics.jsonl") if line["step"] <= 3]
    report = examine(run, [], "", step=3, prompts=None, rounds=1)
    [cost] = report.costs
    assert (report.step, cost.step, cost.hosted, cost.lost_steps) == (3, 3, True, 0)
    assert cost.learner_s == pytest.approx(sum(line["learner_busy_s"] for line in lines))
    busy = ("learner_busy_s", "sampler_busy_s", "verifier_busy_s")
    assert cost.work_s == pytest.approx(sum(line[name] for line in lines for name in busy))
    assert cost.sampled_tokens == sum(line["sampler_tokens"] for line in lines)
    assert [step for step, _, _ in cost.curve] == [0, 1, 2, 3]
    assert cost.curve[0][1] == 0 and cost.curve[-1][1] == pytest.approx(cost.work_s)
    assert any("learner's process" in note for note in report.notes)


def test_the_surprise_is_that_of_the_plain_computation(bench: Bench):
    side = side_of(bench.distilled(), None)
    task = open_task(side.settings.task, side.settings.seed)
    asked = [task.prompt("eval", i) for i in range(3)]
    for one in contestants(side, []):
        nats, lengths = surprise(one.load(), asked)
        plain = [plain_nats(one, prompt) for prompt in asked]
        np.testing.assert_allclose([n or 0.0 for n in nats], [n for n, _ in plain], rtol=1e-4)
        assert lengths == [count for _, count in plain]


def test_a_right_answer_beyond_the_context_is_of_no_surprise(bench: Bench):
    side = side_of(bench.distilled(), None)
    task = open_task(side.settings.task, side.settings.seed)
    short = task.prompt("eval", 0)
    long = msgspec.structs.replace(short, demonstration="9" * 600)
    none = msgspec.structs.replace(short, demonstration=None)
    nats, lengths = surprise(contestants(side, [])[0].load(), [long, short, none])
    assert [n is None for n in nats] == [True, False, True]
    assert (lengths[0], lengths[2]) == (0, 0)


def test_a_run_without_a_teacher_and_with_adapters_has_a_report(bench: Bench):
    wanted = settings(bench.folder, model__train={"name": "lora", "rank": 2}, eval={"prompts": 0})
    run = bench.made("adapters", wanted, stop_after=2)
    assert run.read_status().state == "paused"
    report = examine(run, [], "", step=None, prompts=5, rounds=1)
    assert (report.promise, report.texts, report.step) == ({}, 0, 2)
    before, after = report.contestants
    assert (
        before.parameters == after.parameters
    )  # an export has the adapters fused into the network
    assert before.weights_bytes == after.weights_bytes
    assert (report.prompts, report.judged) == (4, 4)  # all that are held out


def test_an_endpoint_is_listed_and_not_measured(bench: Bench):
    side = side_of(bench.distilled(), None)
    teachers = {
        "far": EndpointTeacher(url="http://127.0.0.1:1/v1", model="big"),
        "near": LocalTeacher(path=str(teacher(bench.folder))),
    }
    algorithm = msgspec.structs.replace(
        side.settings.algorithm, teachers=teachers, learn_from=FromTeacher(), signal=TextOnly()
    )
    changed = msgspec.structs.replace(side.settings, algorithm=algorithm)
    found = contestants(msgspec.structs.replace(side, settings=changed), [])
    assert [one.name for one in found[:2]] == ["teacher far", "teacher near"]
    assert (found[0].model, found[0].where) == (None, "big at http://127.0.0.1:1/v1")


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────


def refused(bench: Bench, out: Path, capsys, *options: str, run: str = "distilled") -> str:
    """Returns the error sentence, after checking that nothing was written."""
    before = sorted(out.parent.rglob("*"))
    assert bench.report("--out", str(out), *options, run=run) == 2
    assert sorted(out.parent.rglob("*")) == before
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_sentence_and_nothing_is_written(bench: Bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no run 'nosuch'" in refused(bench, out, capsys, run="nosuch")
    assert "no run 'nosuch'" in refused(bench, out, capsys, "--against", "nosuch")
    said = refused(bench, out, capsys, "--step", "9")
    assert "distilled has checkpoints of steps 1, 2, 3, 4, none of 9" in said
    assert "named twice" in refused(bench, out, capsys, "--against", "data-alone", "data-alone")
    assert "--prompts: needs" in refused(bench, out, capsys, "--prompts", "0")
    out.write_text("mine")
    assert "is a file" in refused(bench, out, capsys)
    assert out.read_text() == "mine"
    RunDirectory(bench.folder / "runs", "empty").create(to_toml(distilled(bench.folder)), {})
    assert "no checkpoint yet" in refused(bench, tmp_path / "two", capsys, run="empty")


def test_runs_of_different_tasks_are_not_compared(bench: Bench, tmp_path, capsys):
    task = {"name": "sorting", "length": 3}
    sft = {"name": "sft", "steps": 1, "rows_per_step": 2}
    wanted = settings(bench.folder, task=task, algorithm=sft, eval={"prompts": 0})
    bench.made("sorted", wanted)
    said = refused(bench, tmp_path / "out", capsys, "--against", "sorted")
    assert "held-out prompts (task sorting) are not those of distilled (task jsonl)" in said


def test_a_run_that_goes_on_is_not_measured(bench: Bench):
    run = bench.from_data()
    status = run.read_status()
    run.lock()
    try:
        run.write_status(msgspec.structs.replace(status, state="running"))
        with pytest.raises(BadInput, match="pippin pause data-alone"):
            side_of(RunDirectory(run.path.parent, run.name), None)
    finally:
        run.write_status(status)
        run.unlock()


def test_a_run_that_was_paused_before_its_first_step_has_nothing_to_report(bench: Bench):
    run = RunDirectory(bench.folder / "runs", "unborn")
    wanted = distilled(bench.folder)
    run.create(to_toml(wanted), {})
    run.ask_to_pause(PauseRequest(by="user", reason="a test"))
    go(wanted, run)
    with pytest.raises(BadInput, match=r"no checkpoint yet|has not learned a step"):
        side_of(run, None)
