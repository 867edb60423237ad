"""Nothing that is printed steers the terminal, whatever text came."""

import pytest

from runtime.plain_text import LONGEST_FIELD, printable, printable_lines

HOSTILE = [
    "\x1b[31mred", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;file:///etc/passwd\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;cm0gLXJm\x07", "\x1bP+q544e\x1b\\", "\x1b[?1049h", "\x1b[6n", "\x1bc", "\x1b(0",
    "\x1b[999999999D", "\x1b[5i", "\x1b", "\x1b\x1b\x1b", "\x9b31m", "\x90q\x9c", "\x9d0;t\x9c", "\x85next",
    "\rover", "a\nb", "a\r\nb", "a\tb", "\x08\x08\x08gone", "\x0b", "\x0c", "\x00nul", "\x07bell", "\x0e\x0f",
    "\x7f", "\u202egnp.exe", "\u202dx\u202c", "\u2066x\u2069", "\u2067x", "\u2068x", "\u200ex\u200f",
    "\u061cx", "\u200bzero", "\u200dz", "\u2060z", "\ufeffbom", "\u00adsoft", "\u2028line", "\u2029paragraph",
    "\ud800", "\udfff", "\udc80x", "\U000e0041\U000e0042", "\ue000", "\ufff9\ufffa\ufffb", "\uffff",
    "e" + "\u0301" * 500, "\u3164name", "\u2800", "x" * 1_000_000, "\x1b[31m" * 100_000,
    "\u202e" * 300, "=\x1b]2;x", "%s%n{0.__class__}\x1b[1m", "\U0010ffff",
]  # fmt: skip


def test_the_list_is_long():
    assert len(set(HOSTILE)) == len(HOSTILE) >= 50


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:40])
def test_a_field_is_one_short_line_of_visible_characters(text):
    for shown in (printable(text), printable(text, limit=12)):
        assert shown.isprintable()
        assert shown.encode()  # no lone surrogate
    assert len(printable(text)) <= LONGEST_FIELD
    assert len(printable(text, limit=12)) <= 12
    assert "\u0301" * 5 not in printable(text)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:40])
def test_lines_stay_lines_and_nothing_else_gets_through(text):
    lines = printable_lines(f"first {text}\nlast", limit=3000)
    assert all(line.isprintable() for line in lines.split("\n"))
    assert len(lines) < 8 * 3000


def test_what_came_can_be_read():
    assert printable("\x1b[31mred\u202e\ud800") == "\\x1b[31mred\\u202e\\ud800"
    assert printable("a\nb\tc") == "a\\nb\\tc"
    assert printable_lines("a\nb\tc\r") == "a\nb    c\\r"


@pytest.mark.parametrize(
    "text", ["", "plain", "Größe ≥ 3, ٣², 漢字, 🙂", "C:\\new", "é", "e\u0301"]
)
def test_ordinary_text_is_left_alone(text):
    assert printable(text) == text
    assert printable_lines(text) == text


def test_a_space_of_another_kind_is_a_space():
    assert printable("a\u00a0b\u3000c") == "a b c"


def test_a_long_text_says_that_it_was_cut():
    assert printable("x" * 300) == "x" * (LONGEST_FIELD - 1) + "…"
    assert printable("x" * LONGEST_FIELD) == "x" * LONGEST_FIELD
    assert printable_lines("x\n" * 300, limit=10) == "x\n" * 5 + "…"
