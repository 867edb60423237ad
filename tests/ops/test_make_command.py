"""`pippin make-data` on the command line: recipes, error sentences, exit codes, and exact mode."""

import signal
import tomllib
from pathlib import Path

import pytest

from configs.data_load import load_data
from configs.errors import SettingsError
from ops.cli import main
from tests.configs.test_recipes import restated
from tests.ops.making import ROOT, command, local, recipe, rows, timeless

RECIPES = sorted((ROOT / "configs" / "data").glob("*.toml"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))


@each_recipe
def test_a_data_recipe_decodes_says_what_it_is_for_and_holds_only_what_differs(path):
    assert restated(tomllib.loads(path.read_text()), load_data(path)) == []
    assert path.read_text().startswith("# ")


BASE = """
[teacher]
name = "local"
path = "."
[task]
name = "addition"
[method]
name = "rejection"
prompts = 3
"""
SERVER = 'teacher={name="endpoint",url="http://127.0.0.1:1/v1",model="m"}'
RECORDED = 'teacher={name="recorded"}'
ROWS = 'task={name="jsonl",train="x"}'


@pytest.mark.parametrize(("overrides", "said"), [
    (["method.sample=3"], 'unknown key "method.sample" (did you mean "method.samples"?)'),
    (["method.name=rejections"], 'did you mean "rejection"?'),
    (["method.samples=0"], "method.samples needs an integer from 1 to 16777216, got 0"),
    (["teacher.url=x"], 'unknown key "teacher.url"'),
    (["sampling.temperature=0"], "needs sampling.temperature > 0"),
    (["sampling.temperature=0", "sampling.top_k=4", "method.samples=1"], "sampling.top_k has no effect"),
    (['method={name="magpie"}'], "task has no effect: Magpie's prompts are sampled"),
    ([SERVER, "sampling.slots=3"], "sampling.slots has no effect"),
    ([SERVER, "exact=true"], "exact has no effect"),
    ([RECORDED], 'needs task.name = "jsonl" and task.response'),
    ([RECORDED, ROWS, "task.response=a"], "needs task.reward, a Python file that scores answers"),
    ([ROWS], "needs task.reward, a Python file that scores answers, or task.response"),
    ([ROWS, "task.response=a", "task.reward=b"], "task.response has no effect beside task.reward"),
    (["output.name=preference", 'method={name="traces",prompts=1}'], "a pair needs a better and a worse"),
    (["output.name=preference", "output.pairs=3"], "needs method.samples >= 6, got 4"),
    (["output.name=preference", "method.keep=1"], "method.keep has no effect"),
    (["limits.shortest_characters=9", "limits.longest_characters=8"], "nothing would be kept"),
    (['method={name="step_by_step",label_prefix="a",rationale_prefix="a"}'], "the two tasks need"),
    (['method={name="step_by_step"}', 'task={name="gsm8k",train="a",eval="b"}'], 'method.judged = "label"'),
])  # fmt: skip
def test_a_recipe_that_cannot_work_is_refused_with_a_sentence(tmp_path, overrides, said):
    path = tmp_path / "recipe.toml"
    path.write_text(BASE)
    with pytest.raises(SettingsError) as caught:
        load_data(path, overrides)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_magpie_of_an_endpoint_is_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('teacher={name="endpoint",url="http://x/v1",model="m"}\nmethod={name="magpie"}')
    with pytest.raises(SettingsError, match=r'"magpie" needs teacher\.name = "local"'):
        load_data(path)


@pytest.mark.parametrize(("options", "said"), [
    (["--out", "nowhere/rows.jsonl"], "--out: needs a folder that is there"),
    (["--out", "."], "--out: needs the name of a file"),
    (["--out", "rows.jsonl", "--set", "method.prompts=0"], "needs a number, task addition has no end"),
    (["--out", "rows.jsonl", "--set", 'dedup={name="near",hashes=1,threshold=0.5}'], "hashes: needed more"),
])  # fmt: skip
def test_the_command_says_what_is_wrong_and_writes_nothing(
    tmp_path, monkeypatch, capsys, options, said
):
    todo = local(tmp_path, task={"name": "addition"})
    path = recipe(tmp_path, todo)
    monkeypatch.chdir(tmp_path)
    assert main(["make-data", str(path), *options]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.glob("rows*")) == []


def test_the_command_prints_the_sum_and_is_idempotent(tmp_path, capsys):
    path, out = recipe(tmp_path, local(tmp_path)), tmp_path / "rows.jsonl"
    assert main(["make-data", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("  24 asked for\n= ") and f"rows in {out}" in said
    assert main(["make-data", str(path), "--out", str(out)]) == 0
    assert f"rows were already in {out}" in capsys.readouterr().out
    assert main(["make-data", str(path), "--out", str(out), "--set", "seed=9"]) == 2
    assert "was begun with seed = 3, the recipe has 9" in capsys.readouterr().err
    assert main(["make-data", str(path), "--out", str(out), "--set", "seed=9", "--again"]) == 0
    nothing = ["--out", str(tmp_path / "no.jsonl"), "--set", "limits.shortest_characters=60000"]
    assert main(["make-data", str(path), *nothing]) == 1
    assert "not written, no row was kept" in capsys.readouterr().err


def test_in_exact_mode_rows_do_not_depend_on_slots_or_on_being_stopped(tmp_path):
    path = recipe(tmp_path, local(tmp_path, exact=True))
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    said = command(path, whole).communicate(timeout=120)
    assert whole.exists(), said
    process = command(path, parts, "--set", "sampling.slots=3")
    journal = parts.with_name("parts.jsonl.journal")
    size = 0
    while process.poll() is None and size < 1500:  # something has been answered
        size = journal.stat().st_size if journal.exists() else 0
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    said = command(path, parts).communicate(timeout=120)
    assert parts.exists(), said
    assert timeless(rows(parts)) == timeless(rows(whole))
