"""A local checkpoint makes the same rows however often the command was stopped, and SFT can read them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from configs.model import Model
from configs.tasks import Jsonl
from ops.make import local as local_teacher
from ops.make.local import user_turn
from ops.make.make import Made
from ops.make.store import journal_path
from policies.characters import CHAT_TEMPLATE
from policies.load import load_tokens
from policies.rows import from_data
from runtime.errors import BadInput, Interrupted, RunFailed
from runtime.tasks.open import open_task
from tests.actors import tiny
from tests.ops.making import ending, local, made, rows, timeless
from tests.policies.checkpoints import write


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))


def test_rows_that_pass_are_a_task_for_sft(tmp_path):
    out = tmp_path / "rows.jsonl"
    done = made(local(tmp_path), out)
    assert done.fresh and done.account.asked == 24 and done.account.adds_up
    assert done.account.kept == done.account.rows == len(rows(out)) > 1
    # as configs/sft.toml reads them
    task = open_task(Jsonl(train=str(out), response="response"), seed=0)
    prompts = [task.prompt("train", i) for i in range(task.size("train") or 0)]
    tokens = load_tokens(Model(path="x"), tmp_path / "model")
    trajectories = from_data(tokens, prompts, step=1, limit=64)
    assert [t.text for t in trajectories] == [p.demonstration for p in prompts]
    assert all(t.dropped is None for t in trajectories)


def test_a_row_says_who_made_it_and_how(tmp_path):
    made(local(tmp_path), tmp_path / "rows.jsonl")
    row = rows(tmp_path / "rows.jsonl")[0]
    story = row["made"]
    assert story["teacher"]["name"] == "local" and len(story["teacher"]["digest"]) == 64
    assert story["teacher"]["path"] == str(tmp_path / "model")
    assert story["sampling"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
                                 "max_new_tokens": 6}  # fmt: skip
    assert (story["method"], story["seed"], len(story["key"])) == ("rejection", 3, 16)
    assert story["verdict"] == {"reward": 1.0, "passed": True, "parts": {"correct": 1.0}}
    assert story["time"].startswith("20") and story["time"].endswith("+00:00")
    assert sum(map(ord, row["response"])) % 5 == 0


def test_the_same_recipe_makes_the_same_rows_and_another_seed_others(tmp_path):
    first, second, third = (tmp_path / f"{i}.jsonl" for i in range(3))
    made(local(tmp_path), first)
    made(local(tmp_path), second)
    made(local(tmp_path, seed=4), third)
    assert timeless(rows(first)) == timeless(rows(second))
    assert [r["response"] for r in rows(first)] != [r["response"] for r in rows(third)]


def stopped_after(monkeypatch, steps: int) -> Callable[[], None]:
    """Has the next call asked to stop after so many tokens, as by Ctrl-C."""
    real, asked = local_teacher.LocalGenerator.generate, [0]

    def generate(self, queries, sampling, may_continue):
        def counted() -> bool:
            asked[0] += 1
            if asked[0] == steps:
                os.kill(os.getpid(), signal.SIGINT)
            return may_continue()

        return real(self, queries, sampling, counted)

    monkeypatch.setattr(local_teacher.LocalGenerator, "generate", generate)
    return lambda: monkeypatch.setattr(local_teacher.LocalGenerator, "generate", real)


@pytest.mark.parametrize("steps", [1, 3, 7, 12])
def test_what_was_sampled_before_ctrl_c_is_not_sampled_again(tmp_path, monkeypatch, steps):
    whole = tmp_path / "whole.jsonl"
    made(local(tmp_path), whole)
    out = tmp_path / "rows.jsonl"
    undo = stopped_after(monkeypatch, steps)
    with pytest.raises(Interrupted, match=r"answers in rows.jsonl.journal; the same command goes"):
        made(local(tmp_path), out)
    assert not out.exists()
    undo()
    again = made(local(tmp_path), out)
    assert again.fresh and timeless(rows(out)) == timeless(rows(whole))


def test_rows_that_exist_are_not_made_again(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    first = made(local(tmp_path), out)
    content = out.read_bytes()
    monkeypatch.setattr(local_teacher, "load_frozen", None)  # the teacher is not even loaded
    assert made(local(tmp_path), out) == Made(first.account, False, {})
    out.unlink()
    assert made(local(tmp_path), out).fresh and out.read_bytes() == content


def test_a_changed_recipe_is_refused_by_its_key_and_again_begins_anew(tmp_path):
    out = tmp_path / "rows.jsonl"
    made(local(tmp_path), out)
    warmer = local(tmp_path, sampling={"temperature": 1.5, "max_new_tokens": 6, "slots": 8})
    with pytest.raises(BadInput, match=r"sampling.temperature = 1.0, the recipe has 1.5; --again"):
        made(warmer, out)
    assert made(warmer, out, again=True).fresh
    assert rows(out)[0]["made"]["sampling"]["temperature"] == 1.5
    slower = local(tmp_path, sampling={"temperature": 1.5, "max_new_tokens": 6, "slots": 4})
    assert not made(slower, out).fresh  # what is sampled does not depend on it


def test_changed_data_reward_or_weights_are_noticed(tmp_path):
    out, recipe = tmp_path / "rows.jsonl", local(tmp_path)
    made(recipe, out)
    for path in (tiny.prompts(tmp_path), tiny.reward_file(tmp_path, tiny.COARSE)):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(BadInput, match=r"what task\.\w+ holds has changed"):
            made(recipe, out)
        path.write_bytes(before)
    weights = tmp_path / "model" / "model.safetensors"
    arrays = dict(mx.load(str(weights)))  # type: ignore[arg-type]
    mx.save_safetensors(str(weights), {n: a * 1.01 for n, a in arrays.items()}, {"format": "mlx"})
    with pytest.raises(BadInput, match="what teacher holds has changed"):
        made(recipe, out)


# ── bad teachers ─────────────────────────────────────────────────────────────────────────────────


def test_a_teacher_that_is_missing_is_refused_and_nothing_is_written(tmp_path):
    nowhere = {"name": "local", "path": str(tmp_path / "nowhere")}
    with pytest.raises(BadInput, match=r"teacher.path: needs a checkpoint folder or a hub id"):
        made(local(tmp_path, teacher=nowhere), tmp_path / "rows.jsonl")
    assert not journal_path(tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_counted_and_never_a_row(tmp_path, temperature):
    folder = write(tmp_path / "llama", "llama")
    weights = folder / "model.safetensors"
    arrays = dict(mx.load(str(weights)))  # type: ignore[arg-type]
    seven = load_tokens(Model(path="x"), folder).encode("7")[0]
    embedding = arrays["model.embed_tokens.weight"]
    embedding[seven] = mx.nan  # only who reads a seven is lost
    mx.save_safetensors(str(weights), arrays, {"format": "mlx"})
    recipe = local(
        tmp_path,
        teacher={"name": "local", "path": str(folder)},
        method={"name": "traces", "prompts": 30, "samples": 1},
        sampling={"temperature": temperature, "max_new_tokens": 3, "slots": 8},
        limits={},
        reasoning={"begin": "~"},
        max_failures=40,
        dedup={"name": "none"},
    )
    done = made(recipe, tmp_path / "rows.jsonl")
    with_seven = sum("7" in f"{i}+{i * 7 % 10}=" for i in indices(recipe))
    assert done.account.failed["nan_logits"] >= with_seven > 3
    assert done.account.rejected["truncated"] > 3  # the others did answer
    assert done.account.rows == 0 or all(
        "7" not in row["prompt"] for row in rows(tmp_path / "rows.jsonl")
    )


def indices(recipe) -> list[int]:
    task = open_task(recipe.task, recipe.seed)
    prompts = [task.prompt("train", i).messages[0]["content"] for i in range(30)]
    task.close()
    return [int(text.partition("+")[0]) for text in prompts]


def test_prompts_that_do_not_fit_are_counted_and_the_others_answered(tmp_path):
    data = tmp_path / "long.jsonl"
    lines = [{"prompt": "x" * (70 if i % 2 else 5)} for i in range(20)]
    data.write_text("\n".join(map(json.dumps, lines)))
    task = {"name": "jsonl", "train": str(data), "reward": str(tiny.reward_file(tmp_path, tiny.GRADED)),
            "pass_at": 0.0}  # fmt: skip
    recipe = local(tmp_path, task=task, method={"name": "rejection"}, limits={})
    done = made(recipe, tmp_path / "rows.jsonl")
    assert done.account.failed["prompt_too_long"] % 4 == 0 < done.account.kept


def test_a_reward_that_always_fails_stops_it_and_what_was_asked_stays(tmp_path):
    broken = "def reward(prompt, completion, row):\n    raise ValueError('no')\n"
    recipe = local(tmp_path, reward=broken, verifier={"max_failures": 3})
    with pytest.raises(RunFailed, match=r"3 times in a row .* raised: ValueError: no.*goes on"):
        made(recipe, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
    assert journal_path(tmp_path / "rows.jsonl").stat().st_size > 500


def test_without_any_row_no_file_is_written(tmp_path):
    never = "def reward(prompt, completion, row):\n    return 0.0\n"
    done = made(local(tmp_path, reward=never), tmp_path / "rows.jsonl")
    assert (done.account.rows, done.account.kept) == (0, 0) and done.account.adds_up
    assert not (tmp_path / "rows.jsonl").exists()


# ── Magpie ───────────────────────────────────────────────────────────────────────────────────────


def magpie(folder: Path, **tables):
    method = {"name": "magpie", "instructions": 24, "max_new_tokens": 8}
    return local(folder, task=None, method=method, limits={}, max_failures=30, **tables)


def test_the_user_s_turn_is_found_in_the_template(tmp_path):
    tokens = load_tokens(Model(path="x"), tiny.checkpoint(tmp_path / "model"))
    prefix, end = user_turn(tokens)
    assert (prefix, end) == ((4,), 2)  # <user> and <end>
    strict = load_tokens(Model(path="x", system="be brief"), tmp_path / "model")
    assert user_turn(strict)[0] == (3, *strict.encode("be brief"), 2, 4)


def test_magpie_samples_instructions_and_answers_them(tmp_path):
    sampling = {"max_new_tokens": 20, "slots": 8}
    done = made(magpie(tmp_path, sampling=sampling), tmp_path / "rows.jsonl")
    assert done.account.asked == 24 and done.account.adds_up and done.account.rows > 2
    found = rows(tmp_path / "rows.jsonl")
    assert len({row["prompt"] for row in found}) == len(found)
    assert found[0]["made"]["instruction_sampling"]["max_new_tokens"] == 8
    assert found[0]["made"]["verdict"] is None
    assert {"empty", "one_token", "truncated"} & {*done.account.rejected, *done.account.failed}


def test_magpie_without_a_chat_template_is_refused_before_anything(tmp_path):
    folder = ending(tmp_path / "model")
    config = folder / "tokenizer_config.json"
    assert CHAT_TEMPLATE in json.loads(config.read_text())["chat_template"]
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items()
                                  if k != "chat_template"}))  # fmt: skip
    with pytest.raises(BadInput, match=r"Magpie needs a chat template .* has none"):
        made(magpie(tmp_path), tmp_path / "rows.jsonl")
    assert not journal_path(tmp_path / "rows.jsonl").exists()
