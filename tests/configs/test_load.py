from pathlib import Path

import pytest

from configs import SettingsError, load
from configs.algorithms.sft import Sft
from configs.losses import Cispo
from configs.model import Lora
from configs.schema import Settings
from configs.tasks import Gsm8k, Jsonl

MINIMAL = '[task]\nname = "addition"\n[algorithm]\nname = "grpo"\n'


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def decode(text: str, *overrides: str) -> Settings:
    Path("run.toml").write_text(text)
    return load("run.toml", overrides)


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        decode(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ── what is wrong in the recipe ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "group_sise = 4",
            'unknown key "algorithm.group_sise" (did you mean "algorithm.group_size"?)',
        ),
        (
            "learning_rate = 1.0",
            'unknown key "algorithm.learning_rate" (did you mean "optimizer.learning_rate"?)',
        ),
        (
            "rows_per_step = 4",
            'unknown key "algorithm.rows_per_step": it belongs to algorithm "sft", '
            'and this one is "grpo"',
        ),
        (
            'surrogate = { name = "cispo", high = 0.1 }',
            'unknown key "algorithm.surrogate.high": it belongs to algorithm.surrogate "clip" or '
            '"gspo", and this one is "cispo"',
        ),
        ("[sampling]\ntop_p = 0.9", 'unknown key "sampling.top_p" (did you mean "eval.top_p"?)'),
        ("[optimiser]", 'unknown key "optimiser" (did you mean "optimizer"?)'),
        ("group_size = 1", "algorithm.group_size needs an integer from 2 to 4096, got 1"),
        ('group_size = "8"', 'algorithm.group_size needs an integer from 2 to 4096, got "8"'),
        ("group_size = 8.0", "algorithm.group_size needs an integer from 2 to 4096, got 8.0"),
        ("group_size = true", "algorithm.group_size needs an integer from 2 to 4096, got true"),
        ("[dashboard]\nport = 70000", "dashboard.port needs an integer from 0 to 65535, got 70000"),
        ("[dashboard]\nenabled = 1", "dashboard.enabled needs true or false, got 1"),
        ("[optimizer]\nbeta1 = 1", "optimizer.beta1 needs a number ≥ 0 and < 1, got 1"),
        ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate needs a number > 0, got nan"),
        ("[optimizer]\nlearning_rate = inf", "optimizer.learning_rate needs a number > 0, got inf"),
        ('[model]\npath = ""', 'model.path needs a text that is not empty, got ""'),
        ("[model]\nquantize_bits = 3", "model.quantize_bits needs one of 0, 4, 8, got 3"),
        (
            '[power]\non_battery = "stop"',
            'power.on_battery needs one of "pause", "run", got "stop"',
        ),
        ("[power]\nduty_cycle = 0", "power.duty_cycle needs a number from 0.05 to 1, got 0"),
        ('[power]\nhours = "22:00-07:00"', 'power.hours needs a list, got "22:00-07:00"'),
        ('[power]\nhours = [""]', 'power.hours[0] needs a text that is not empty, got ""'),
        ('[power]\nhours = ["22-7"]', "power.hours[0] needs two different times of day"),
        ("model = 3", "unknown key"),
        ("[eval]\nprompts = []", "eval.prompts needs an integer from 0 to 1000000, got a list"),
        ("kl = 1.0", "algorithm.kl needs a table, got 1.0"),
        (
            'advantage = "group_meen"',
            'algorithm.advantage needs one of "batch_std", "group_mean", "group_std", "rloo" '
            '(did you mean "group_mean"?), got "group_meen"',
        ),
        (
            'surrogate = "cispo"',
            'algorithm.surrogate needs a table such as { name = "cispo" }, got "cispo"',
        ),
        (
            "surrogate = { low = 0.1 }",
            'algorithm.surrogate needs a name: one of "clip", "cispo", "gspo", "dppo_tv", '
            '"reinforce"',
        ),
        (
            '[model.train]\nname = "lora"\nmodules = ["self_attn.q_proj", ""]',
            'model.train.modules[1] needs a text that is not empty, got ""',
        ),
        (
            "[model.chat_template]\nx = [1]",
            "model.chat_template.x needs true or false or an integer or a number or a text, "
            "got a list",
        ),
    ],
)
def test_a_wrong_line_is_one_sentence_with_file_key_needed_and_came(
    line: str, sentence: str
) -> None:
    assert complaint(MINIMAL + line).startswith(f"run.toml: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '[task]\nname = "addision"\n[algorithm]\nname = "grpo"',
            'run.toml: task.name needs one of "addition", "sorting", "countdown", "chain", '
            '"gsm8k", "jsonl" (did you mean "addition"?), got "addision"',
        ),
        (
            '[task]\nname = "addition"',
            "run.toml: needs a table [algorithm] with a name: one of "
            '"distill", "es", "grpo", "preference", "sft"',
        ),
        (
            '[task]\nname = "jsonl"\n[algorithm]\nname = "sft"',
            'run.toml: task.train is missing: task "jsonl" needs it (a text that is not empty)',
        ),
        (
            'algorithm = "grpo"\ntask = { name = "addition" }',
            'run.toml: algorithm needs a table such as { name = "grpo" }, got "grpo"',
        ),
        ("seed = \n", "run.toml: not valid TOML: line 1, column 8: invalid value"),
        ("[task", "run.toml: not valid TOML: "),
    ],
)
def test_a_recipe_that_is_wrong_as_a_whole_says_so(text: str, sentence: str) -> None:
    assert complaint(text).startswith(sentence)


def test_an_unknown_key_comes_before_the_missing_one_that_it_was_meant_to_be() -> None:
    text = '[task]\nname = "jsonl"\ntrian = "x"\n[algorithm]\nname = "sft"'
    assert 'unknown key "task.trian" (did you mean "task.train"?)' in complaint(text)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^none\.toml: needs a recipe .* no such file$"):
        load("none.toml")
    with pytest.raises(SettingsError, match="needs a recipe in TOML, this is a folder"):
        load(tmp_path)
    Path("latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(SettingsError, match=r"latin\.toml: needs UTF-8 text, byte 5"):
        load("latin.toml")
    Path("deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(SettingsError, match="nested too deeply"):
        load("deep.toml")


# ── overrides ────────────────────────────────────────────────────────────────────────────────────


def test_overrides_are_toml_values_and_bare_words_are_text() -> None:
    settings = decode(
        MINIMAL,
        "algorithm.steps=5",
        "optimizer.learning_rate = 1e-3",
        "exact=true",
        "model.path=Qwen/Qwen3-0.6B",
        'model.system="be brief"',
        "model.chat_template.enable_thinking=false",
        "algorithm.surrogate.name=cispo",
        'model.train={ name = "lora", rank = 4 }',
    )
    assert settings.algorithm.steps == 5
    assert settings.optimizer.learning_rate == 1e-3
    assert settings.exact is True
    assert settings.model.path == "Qwen/Qwen3-0.6B"
    assert settings.model.system == "be brief"
    assert settings.model.chat_template == {"enable_thinking": False}
    assert settings.algorithm.surrogate == Cispo()  # type: ignore[union-attr]
    assert settings.model.train == Lora(rank=4)


def test_the_last_override_wins_and_an_empty_one_is_the_empty_text() -> None:
    settings = decode(MINIMAL, "seed=1", "seed=2", "model.system=")
    assert (settings.seed, settings.model.system) == (2, "")


def test_an_override_may_change_the_algorithm() -> None:
    assert decode(MINIMAL, "algorithm.name=sft").algorithm == Sft()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", "--set: needs key=value such as algorithm.steps=5, got 'steps'"),
        ("=5", "--set: needs key=value such as algorithm.steps=5, got '=5'"),
        ("a..b=5", "--set: needs key=value such as algorithm.steps=5, got 'a..b=5'"),
        (
            "algorithm.group_size=1",
            "--set: algorithm.group_size needs an integer from 2 to 4096, got 1",
        ),
        ("algorithm.name.x=1", "--set: algorithm.name.x: algorithm.name is a value, not a table"),
        ("algorithm.stebs=1", '--set: unknown key "algorithm.stebs" (did you mean "algorithm.'),
        ("seed=[1", "--set: seed needs a TOML value, got [1: "),
        ("exact=True", '--set: exact needs true or false, got "True"'),
        ("model.dtype=2020-01-01", '--set: model.dtype needs one of "bfloat16"'),
        (
            "seed=1\nexact=true",
            '--set: seed needs an integer from 0 to 9223372036854775807, got "1',
        ),
    ],
)
def test_a_wrong_override_is_one_sentence_that_names_it(override: str, sentence: str) -> None:
    assert complaint(MINIMAL, override).startswith(sentence)


# ── paths ────────────────────────────────────────────────────────────────────────────────────────


def test_paths_start_where_their_writer_was(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "run.toml"
    recipe.parent.mkdir()
    recipe.write_text(
        '[task]\nname = "gsm8k"\ntrain = "../data/a.jsonl"\neval = "b.jsonl"\n'
        '[algorithm]\nname = "grpo"\n[model]\npath = "./base"\n'
    )
    settings = load(recipe, ["task.eval=c.jsonl"])
    assert settings.task == Gsm8k(
        train=str(tmp_path / "data/a.jsonl"), eval=str(tmp_path / "c.jsonl")
    )
    assert settings.model.path == str(tmp_path / "recipes/base")
    assert load(recipe, ["model.path=./base"]).model.path == str(tmp_path / "base")


def test_all_files_of_a_user_s_task_are_resolved_and_absent_ones_stay_absent(
    tmp_path: Path,
) -> None:
    settings = decode(
        '[task]\nname = "jsonl"\ntrain = "a.jsonl"\nreward = "r.py"\n[algorithm]\nname = "grpo"'
    )
    task = settings.task
    assert isinstance(task, Jsonl)
    assert (task.train, task.eval, task.reward) == (
        str(tmp_path / "a.jsonl"),
        "",
        str(tmp_path / "r.py"),
    )


def test_a_model_is_a_folder_if_there_is_one_and_a_hub_id_otherwise(tmp_path: Path) -> None:
    assert decode(MINIMAL, "model.path=org/name").model.path == "org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert decode(MINIMAL, "model.path=org/name").model.path == str(tmp_path / "org/name")
    (tmp_path / "seedling").mkdir()
    assert decode(MINIMAL, "model.path=seedling").model.path == "seedling"


def test_a_name_that_belongs_to_another_table_is_placed() -> None:
    assert complaint(MINIMAL, 'algorithm.name="dpo"').endswith(
        '"sft" ("dpo" is one of algorithm.loss.name), got "dpo"'
    )
