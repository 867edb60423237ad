"""The distillation benchmarks compare fairly: a run ends when its time is over, and no row is cut."""

from pathlib import Path

import pytest

from configs.model import Model
from ops.bench.distill_tasks import TASKS, distinct
from ops.bench.distill_text import LINES, rows, split, write_bpe
from ops.bench.distillation_runs import blank, exported, held_out, run_here, visited
from policies import weights
from policies.load import load_tokens
from policies.save import parameter_count
from runtime.tasks.addition import open_addition
from tests.actors.tiny import SHAPE, checkpoint

TEXT = "\n\n".join(
    f"{'Anna' if i % 2 else 'Bert'}:\n" + "\n".join(f"line {j} of speech {i}" for j in range(i % 5))
    for i in range(40)
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))


def tables(folder: Path, steps: int) -> dict[str, object]:
    return {
        "model": {"path": str(checkpoint(folder / "model"))},
        "task": TASKS["sorting"],
        "algorithm": {"name": "sft", "steps": steps, "rows_per_step": 2},
        "sampling": {"max_new_tokens": 8},
        "eval": {"prompts": 2},
        "checkpoint": {"every_steps": 100},
    }


def test_a_run_whose_time_is_over_pauses_behind_its_step(tmp_path: Path):
    run = run_here(tmp_path / "runs", "short", tables(tmp_path, 1000), until_s=0.0)
    assert (run.status.state, run.status.step) == ("paused", 1)
    assert list(run.spent.at_step) == [1] and run.spent.processor_s > 0
    assert [step for step, _ in visited(run)] == [0, 1]
    [(step, policy)] = visited(run, last=True)
    assert (step, weights.digest(policy.trained())) == (1, run.status.weights_digest)
    assert exported(run, tmp_path / "out").is_dir()


def test_the_time_of_a_run_is_that_of_its_steps(tmp_path: Path):
    run = run_here(tmp_path / "runs", "whole", tables(tmp_path, 3))
    times = list(run.spent.at_step.values())
    assert run.status.state == "finished" and sorted(times) == times and len(times) == 3
    assert run.spent.processor_s == times[-1]
    assert [step for step, _ in run.scores] == [0, 3]
    _, prompts = held_out(run, 5)
    assert len({prompt.index for prompt in prompts}) == 5


def test_no_two_prompts_are_of_one_question():
    from configs.tasks import Addition

    found = distinct(open_addition(Addition(digits=1), 0), "train", 60)
    assert len({prompt.messages[0]["content"] for prompt in found}) == 60
    few = distinct(open_addition(Addition(digits=1), 0), "eval", 60)  # there are not so many
    assert 0 < len({prompt.messages[0]["content"] for prompt in few}) == len(few) < 60


def test_speeches_become_rows_without_loss_and_none_is_on_both_sides():
    train, unseen = split(TEXT)
    said = [line for row in (*train, *unseen) for line in row["response"].split("\n")]
    # The first speech of each side is context only.
    first = {f"line {j} of speech {i}" for i in (0, 36) for j in range(i % 5)}
    every = {f"line {j} of speech {i}" for i in range(40) for j in range(i % 5)}
    assert len(said) == len(set(said)) and set(said) == every - first
    assert all(len(row["response"].split("\n")) <= LINES for row in train)
    [row] = list(rows(["Anna:\nOh.", "Bert:\nAh."]))
    assert row == {"prompt": "Oh.\n\nBert:\n", "response": "Ah."}


def test_the_tokenizer_gives_back_every_byte_and_knows_an_end(tmp_path: Path):
    write_bpe(tmp_path / "tokens", [TEXT])
    folder = blank(tmp_path / "model", {**SHAPE, "vocab_size": 512}, 0, tmp_path / "tokens")
    tokens = load_tokens(Model(), folder)
    text = "line 3 of speech ü – \n\tЖ🍏"
    assert tokens.decode(tokens.encode(text)) == text
    assert len(tokens.encode("line 3 of speech")) < len("line 3 of speech")
    assert tokens.stop_tokens == {tokens.stop_token()}


def test_a_student_has_at_most_a_tenth_of_its_teacher(tmp_path: Path):
    from ops.bench import distill_tasks, distill_text
    from policies.load import load_frozen

    for module, shape in ((distill_tasks, {}), (distill_text, {"vocab_size": 512})):
        sizes = []
        for name in ("STUDENT", "TEACHER"):
            folder = tmp_path / f"{module.__name__}-{name}"
            blank(folder, {**getattr(module, name), **shape}, 0)
            sizes.append(parameter_count(load_frozen(Model(path=str(folder)), folder)))
        assert sizes[0] <= sizes[1] / 10
