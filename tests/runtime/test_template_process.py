"""A stranger's chat template ends in a prompt or in half a sentence, within a limit of time and length."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlx_lm.tokenizer_utils import load

from policies.tokens import Tokens
from runtime import template_process
from runtime.errors import BadInput
from runtime.template_process import Refused, TemplateProcess
from tests.policies.chat_families import write_family

CHAT = [{"role": "user", "content": "hello"}]
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "does not compile": ("{% for %}", "raised TemplateSyntaxError"),
    "an unknown filter": ("{{ 1 | nothing }}", "raised TemplateAssertionError"),
    "raises": ("{{ raise_exception('only tools') }}", "raised TemplateError: only tools"),
    "undefined": ("{{ nothing.more }}", "raised UndefinedError"),
    "divides by zero": ("{{ 1 / 0 }}", "raised ZeroDivisionError"),
    "prints megabytes": ("{% for a in range(99999) %}0123456789{% endfor %}", "printed more than"),
    "prints one long text": ("{{ 'x' * 16000000 }}", "printed more than"),
    "multiplies a text": ("{{ 'x' * 10 ** 12 }}", "raised SecurityError: a product of"),
    "multiplies a list": ("{{ ([1] * 99999999) | length }}", "raised SecurityError: a product of"),
    "a tower of powers": ("{{ 9 ** (9 ** (9 ** 9)) }}", "raised SecurityError: a product of"),
    "pads without end": ("{{ 'x'.rjust(99999999999) }}", "raised MemoryError"),
    "formats without end": ("{{ '%99999999999d' % 1 }}", "raised "),
    "doubles": (
        "{% set ns = namespace(t='x') %}{% for a in range(99) %}{% set ns.t = ns.t ~ ns.t %}"
        "{% endfor %}{{ ns.t }}",
        "raised MemoryError",
    ),
    "recurses": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "raised RecursionError"),
    "a class": ("{{ ''.__class__.__mro__ }}", "raised SecurityError"),
    "globals": ("{{ namespace.__init__.__globals__ }}", "raised SecurityError"),
    "underscores in a namespace": ("{{ namespace(__class__=1) }}", "raised SecurityError"),
    "a private setting": ("{% set ns = namespace() %}{% set ns._x = 1 %}", "raised SecurityError"),
    "changes a message": ("{{ messages.append(1) }}", "raised SecurityError"),
    "includes a file": ("{% include '/etc/passwd' %}", "raised "),
    "imports": ("{% import 'os' as os %}", "raised "),
    "deep": ("{{ " + "(" * 900 + "1" + ")" * 900 + " }}", "raised "),
    "loops for ever": (NESTED, "did not end within 1 s"),
}


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess()
    yield process
    process.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_gives_half_a_sentence(
    name: str, process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, reason = HOSTILE[name]
    if name == "loops for ever":
        monkeypatch.setattr(template_process, "RENDER_S", 1.0)
    with pytest.raises(Refused) as caught:
        process.render(template, CHAT, {})
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert (
        process.render("{{ messages[0].content }}", CHAT, {}) == "hello"
    )  # the next one is served


def is_child(command_line: Path) -> bool:
    try:
        return template_process.MODULE.encode() in command_line.read_bytes()
    except OSError:  # it has ended
        return False


def test_a_template_sees_no_secret_of_ours(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    fresh = TemplateProcess()
    fresh.render("{{ messages }}", CHAT, {})
    assert fresh._process is not None
    if Path("/proc").is_dir():
        running = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if is_child(path)]
        assert running
        assert all(b"a secret" not in (path / "environ").read_bytes() for path in running)
    fresh.close()


def test_the_process_ends_when_it_is_told_to_and_starts_again(process: TemplateProcess) -> None:
    assert process.render("a", CHAT, {}) == "a"
    child = process._process
    process.close()
    assert child is not None and not child.alive()
    assert process.render("a", CHAT, {}) == "a"


def test_a_long_prompt_is_no_reason_to_refuse(process: TemplateProcess) -> None:
    text = "日本" * 400_000
    chat = [{"role": "user", "content": text}]
    assert process.render("<{{ messages[0].content }}>", chat, {}) == f"<{text}>"


def test_a_tokenizer_s_hostile_template_is_one_sentence_with_its_folder(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "qwen3")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ raise_exception('needs a tool') }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens = Tokens(load(folder), folder, {}, "")
    with pytest.raises(BadInput) as caught:
        tokens.prompt(CHAT)
    assert str(caught.value) == (
        f"{folder}: its chat template makes no prompt of the messages: it raised TemplateError: needs a tool"
    )


def test_a_rendering_costs_little_once_the_process_is_there(process: TemplateProcess) -> None:
    process.render("{{ messages[0].content }}", CHAT, {})
    took = []
    for _ in range(50):
        began = time.perf_counter()
        process.render("{{ messages[0].content }}", CHAT, {})
        took.append(time.perf_counter() - began)
    assert sorted(took)[5] < 0.01  # the quick ones: others wait for a busy machine


def test_a_template_has_no_more_time_in_a_process_that_was_just_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = []
    ask = template_process.Killable.ask

    def noted(self: object, request: dict, limit_s: float, *more: int) -> object:
        limits.append((bool(request["template"]), limit_s))
        return ask(self, request, limit_s, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(template_process.Killable, "ask", noted)
    fresh = TemplateProcess()
    assert fresh.render("a", CHAT, {}) == "a"
    fresh.close()
    assert limits == [(False, template_process.START_S), (True, template_process.RENDER_S)]
