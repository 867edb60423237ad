"""An algorithm of one file outside the package is loaded, explained, estimated, run, paused and resumed."""

from itertools import groupby
from pathlib import Path

import pytest

from configs import SettingsError, load
from configs.algorithms import register
from configs.algorithms.sft import Sft
from configs.dump import to_toml
from configs.schema import Settings
from ops.estimate import GIB, estimate
from ops.ledger import account
from ops.network import SEEDLING
from ops.sentences import explain
from policies.algorithms import open_algorithm
from runtime.metrics import METRICS
from runtime.rundir import RunDirectory
from runtime.trajectory import to_rows
from runtime.trajectory_log import batches
from tests.actors.exact_toy import ANSWERS, PROMPTS, SCENARIOS, STEPS, recipe
from tests.actors.outcomes import outcomes
from tests.actors.toy_algorithm import NOT_BEST, BestOfGroup, Imitation, known

LISTED = 'needs one of "distill", "es", "grpo", "preference", "sft"'


@pytest.fixture
def toy():
    with known():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with outcomes("tests.actors.exact_toy", tmp_path_factory.mktemp("toy"), timeout_s=300) as run:
        yield run


# ── its settings ─────────────────────────────────────────────────────────────────────────────────


def test_it_is_loaded_from_a_recipe_as_any_other(toy, tmp_path: Path) -> None:
    settings = load(recipe(tmp_path), ["algorithm.steps=7"])
    assert settings.algorithm == BestOfGroup(steps=7, prompts_per_step=PROMPTS, group_size=ANSWERS)
    assert type(settings) is Settings, "another process could not be sent it"
    assert settings.model.path == str(tmp_path / "model")
    assert isinstance(open_algorithm(settings), Imitation)
    copy = tmp_path / "resolved.toml"
    copy.write_text(to_toml(settings))
    assert load(copy) == settings


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("algorithm.group_size=1", "--set: algorithm.group_size needs an integer ≥ 2, got 1"),
        (
            "algorithm.group_sise=3",
            '--set: unknown key "algorithm.group_sise" (did you mean "algorithm.group_size"?)',
        ),
        (
            "algorithm.name=best_of",
            f'{LISTED}, "best_of_group" (did you mean "best_of_group"?), got "best_of"',
        ),
        ("task.reward=", 'algorithm "best_of_group" needs task.reward'),
        ("actors.samplers=4", "actors.samplers = 4 needs at least as many"),
    ],
)
def test_what_is_wrong_with_it_is_one_sentence(toy, tmp_path: Path, override, sentence) -> None:
    with pytest.raises(SettingsError) as caught:
        load(recipe(tmp_path), [override])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_once_it_is_gone_nothing_knows_of_it(tmp_path: Path) -> None:
    with known():
        settings = load(recipe(tmp_path))
    with pytest.raises(SettingsError, match=LISTED + r'( \(.*\))?, got "best_of_group"$'):
        load(recipe(tmp_path))
    with pytest.raises(LookupError, match="no file there adds BestOfGroup"):
        open_algorithm(settings)


def test_a_name_that_is_taken_is_refused() -> None:
    class Other(Sft, frozen=True, tag="sft"):
        pass

    with pytest.raises(ValueError, match=r"name = 'sft' is taken by configs\.algorithms\.sft"):
        register(Other)


# ── what is said of it ───────────────────────────────────────────────────────────────────────────


def test_its_numbers_are_explained_by_itself_and_by_its_facts(toy, tmp_path: Path) -> None:
    lines = explain(load(recipe(tmp_path)), 64)
    assert lines[:2] == [
        "3 prompts × 4 answers: the best of each prompt's is imitated, 4 steps in all.",
        "2 samplers × 8 slots decode all 12 trajectories at once.",
    ]
    assert "1 forward and backward pass an optimiser step at most" in lines[2]
    assert lines[3].startswith("Evaluation: 3 held-out prompts")


def test_its_memory_is_that_of_what_it_does(toy, tmp_path: Path) -> None:
    """It samples and learns by gradients, as GRPO without a reference policy does."""
    path = recipe(tmp_path)
    grpo = ["algorithm={name='grpo', steps=4, prompts_per_step=3, group_size=4}"]
    mine, other = (
        estimate(load(path, overrides), SEEDLING, 8 * GIB, 64) for overrides in ([], grpo)
    )
    assert mine == other and mine.verdict == "fits"
    assert {item.phase for item in mine.items} == {"always", "sampling", "learning"}


# ── its runs ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"whole"}))
def test_whatever_happens_it_ends_as_the_undisturbed_run_does(runs, name) -> None:
    for part in ("step", "digests", "ledger", "evals"):
        assert runs(name)[part] == runs("whole")[part], part


def test_every_trajectory_of_it_has_its_line_in_the_ledger(runs) -> None:
    run = Path(runs("whole")["path"])
    found = account(RunDirectory(run.parent, run.name))
    assert found.adds_up and not found.remarks and not found.problem
    assert found.ledger.pulled == found.log_rows == STEPS * PROMPTS * ANSWERS
    assert found.ledger.trained == STEPS * PROMPTS
    assert found.ledger.dropped == {NOT_BEST: STEPS * PROMPTS * (ANSWERS - 1)}
    assert (found.ledger.failed, found.ledger.in_flight) == ({}, 0)


def test_the_best_of_each_group_is_what_it_trains_on(runs) -> None:
    run = Path(runs("stopped")["path"])
    log = RunDirectory(run.parent, run.name).trajectories
    rows = [row for batch in batches(log) for row in to_rows(batch)]
    groups = [list(g) for _, g in groupby(rows, key=lambda row: (row.step, row.prompt_index))]
    assert [len(group) for group in groups] == [ANSWERS] * STEPS * PROMPTS
    for group in groups:
        rewards = [row.reward or 0.0 for row in group]
        (trained,) = (i for i, row in enumerate(group) if row.dropped is None)
        assert trained == rewards.index(max(rewards))


def test_it_trains_and_its_metrics_have_public_names(runs) -> None:
    lines = runs("whole")["metrics"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line.keys() - {"step"} <= METRICS.keys()
        assert line["cross_entropy"] > 0 and line["grad_norm"] > 0
        assert 0 < line["trained_tokens"] <= line["sampler_tokens"]
