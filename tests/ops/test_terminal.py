"""What is printed fits the terminal, keeps its numbers, and can do nothing to the terminal."""

import ast
import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ops.make.progress import Progress
from ops.table import Table
from ops.terminal import LiveText, clean, say, write

ROOT = Path(__file__).parent.parent.parent
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
PRINTS_INTO_A_LOG = {"ops/host.py"}
RUNS = Table(
    header=("run", "state", "step", "last pass@1", "doing"),
    rows=[
        ("a-run-with-a-long-name", "failed", "400/1000", "0.123", "the learner died of \x1b[2J memory"),
        ("q", "running", "4/1000", "0.456", "learning"),
    ],
    left=(0, 1, 2, 4),
    gives_way=(4, 0),
    colours={"failed": "red"},
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes a terminal of a width."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def make(width: int) -> Terminal:
        monkeypatch.setenv("COLUMNS", str(width))
        return Terminal()

    return make


def seen(out: io.StringIO) -> list[str]:
    """What was written, without colours, a piece for each time that a line was begun."""
    return re.split(r"[\r\n]+", ESCAPE.sub("", out.getvalue()))


# ── control characters ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("\x1b[31mred\x07", "\\u001b[31mred\\u0007"), ("a\rb\x7f\x9b2J", "a\\u000db\\u007f\\u009b2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"), ("\udcff", "\\udcff"), ("\U000e0001", "\\udb40\\udc01"),
        ("é 学 ± 🙂\tx\ny\u00a0z", "é 学 ± 🙂\tx\ny\u00a0z"), ("", ""),
    ],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_written_out(text, printed):
    assert clean(text) == printed


def test_json_and_toml_mean_the_same_after_it():
    odd = "\x9b\u202e\x7f\U000e0001 é"
    assert json.loads(clean(json.dumps({"a": odd}, ensure_ascii=False))) == {"a": odd}
    assert tomllib.loads(clean('a = "\u202e\x9b"')) == {"a": "\u202e\x9b"}


def test_everything_that_is_printed_is_cleaned(capsys, terminal):
    say("\x1b[2J", Table(header=("\x1b",), rows=[("\x07\n",)]))
    say("\x1b]0;title\x07", err=True)
    printed = capsys.readouterr()
    assert not {"\x1b", "\x07"} & {*printed.out, *printed.err}
    out = terminal(80)
    write(out, RUNS)
    assert "\x1b[2J" not in out.getvalue() and "\\u001b[2J" in out.getvalue()
    live = LiveText(out)
    live.rewrite("one \x1b[2J", 0.5)
    live.say("two \x1b[2J")
    live.end(keep=True)
    assert "\x1b[2J" not in out.getvalue() and out.getvalue().count("\\u001b[2J") >= 3


def test_a_stream_that_cannot_write_a_character_is_written_its_escape():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    write(out, "0.5 ± 0.1")
    assert raw.getvalue() == b"0.5 \\xb1 0.1\n"


def test_only_one_module_prints():
    found = [
        (str(path.relative_to(ROOT)), node.lineno)
        for layer in ("actors", "configs", "kernels", "ops", "policies", "runtime")
        for path in (ROOT / layer).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        and str(path.relative_to(ROOT)) not in PRINTS_INTO_A_LOG
    ]  # fmt: skip
    assert found == []


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def test_a_table_that_is_piped_is_whole_and_plain(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    say(RUNS)
    assert capsys.readouterr().out.splitlines() == [
        "run                     state    step      last pass@1  doing",
        "a-run-with-a-long-name  failed   400/1000        0.123  the learner died of \\u001b[2J memory",
        "q                       running  4/1000          0.456  learning",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 50, 60, 80, 120])
def test_a_table_fits_a_terminal_and_keeps_its_numbers(terminal, width):
    out = terminal(width)
    write(out, RUNS)
    lines = seen(out)
    assert all(len(line) <= width for line in lines)
    for value in ("400/1000", "4/1000", "0.123", "0.456", "failed", "running"):
        assert sum(value in line for line in lines) == 1
    assert any("doing" in line for line in lines) == (width > 40)


def test_a_table_that_cannot_fit_is_not_cut(terminal):
    out = terminal(10)
    write(out, RUNS)
    assert all(value in out.getvalue() for value in ("400/1000", "0.123", "0.456"))


def test_there_are_colours_but_not_where_nobody_wants_them(terminal, monkeypatch):
    out = terminal(80)
    write(out, RUNS)
    assert COLOUR.search(out.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    out = terminal(80)
    write(out, RUNS)
    live = LiveText(out)
    live.rewrite("step 1/2", 0.5)
    live.end(keep=True)
    assert "failed" in out.getvalue() and not COLOUR.search(out.getvalue())
    monkeypatch.setenv("TERM", "dumb")
    out = terminal(80)
    write(out, RUNS)
    assert "\x1b" not in out.getvalue()


def test_text_is_broken_between_words_where_that_is_asked_for(terminal):
    text = "q: running\n  held-out pass@1 of the base: 0.125 (n = 32)"
    out = terminal(30)
    write(out, text, wrap=True)
    assert out.getvalue() == "q: running\n  held-out pass@1 of the\n    base: 0.125 (n = 32)\n"
    out = terminal(30)
    write(out, text)
    assert out.getvalue() == text + "\n"
    out = io.StringIO()
    write(out, text, wrap=True)
    assert out.getvalue() == text + "\n"


# ── the line that is rewritten ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("width", "bar"), [(20, False), (32, True), (120, True)])
def test_words_stay_and_the_bar_gives_way(terminal, width, bar):
    out = terminal(width)
    live = LiveText(out)
    live.rewrite("step 1/2  pass@1 0.5", 0.5)
    live.rewrite("step 2/2  pass@1 0.6", 1.0)
    assert "\n" not in out.getvalue()
    frames = [line for line in seen(out) if line]
    assert all(len(line) < width for line in frames)
    assert "step 1/2" in frames[0] and "step 2/2" in frames[-1]
    assert any("━" in line for line in frames) == bar
    if bar:
        assert frames[-1].endswith("pass@1 0.6")
    live.end(keep=True)
    assert out.getvalue().rstrip("\x1b[?25h").endswith("\n")


def test_a_line_that_stays_is_above_and_one_that_is_cleared_is_gone(terminal, monkeypatch):
    out = terminal(80)
    monkeypatch.setattr(sys, "stderr", out)
    live = LiveText(out)
    live.rewrite("working", 0.1)
    live.say("a result")
    say("a note", err=True)
    lines = [line.strip() for line in seen(out)]
    assert lines.index("a result") < lines.index("a note") < len(lines) - 1
    assert lines[-1].endswith("working")
    live.end(keep=False)
    assert sys.stderr is out and out.getvalue().endswith("\x1b[2K")


def test_the_cursor_is_not_left_hidden_while_a_line_is_shown(terminal):
    out = terminal(80)
    LiveText(out).rewrite("working", 0.1)
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_a_terminal_that_has_gone_ends_nothing_and_is_not_written_to_again(terminal):
    out = terminal(80)
    live = LiveText(out)
    live.rewrite("working", 0.1)
    tries = []

    def gone(text: str) -> int:
        tries.append(text)
        raise OSError(5, "Input/output error")

    out.write = gone  # type: ignore[method-assign]
    for share in (0.2, 0.3, 0.4):
        live.rewrite(f"working {share}", share)
    live.end(keep=True)
    assert len(tries) == 1


def test_data_that_is_made_shows_how_far_it_is(terminal):
    out = terminal(100)
    progress = Progress(out)
    progress.more(200, 50)
    progress.counts.answered = 50
    progress.show("asking")
    progress.say("a teacher is slow")
    assert "━" in out.getvalue() and "100/200 answered" in seen(out)[-1]
    assert "a teacher is slow" in [line.strip() for line in seen(out)]
    progress.end()
    assert out.getvalue().endswith("\x1b[2K")


# ── what it costs ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [["--help"], ["check", "configs/quickstart.toml"]])
def test_a_quick_command_imports_neither_rich_nor_an_http_client(command):
    code = (
        "import sys; from ops.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'rich', 'httpx2', 'anyio', 'asyncio'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip().splitlines()[-1] == "[]"
