"""How a command ends: an error is a sentence that steers no terminal, whatever text it holds."""

import pytest

from configs.errors import SettingsError
from ops.outcome import BAD_INPUT, FAILED, exit_code
from runtime.errors import BadInput, RunFailed
from runtime.jsonl import read_rows

HOSTILE = 'column "\x1b[2J\x1b]0;t\x07\u202e\ud800": needed\nsecond line'


@pytest.mark.parametrize(
    ("error", "code"), [(BadInput, BAD_INPUT), (SettingsError, BAD_INPUT), (RunFailed, FAILED)]
)
def test_an_error_is_printed_without_what_steers_a_terminal(capsys, error, code):
    def fail() -> int:
        raise error(HOSTILE)

    assert exit_code(fail) == code
    said = capsys.readouterr().err
    assert said == ('pippin: column "\\x1b[2J\\x1b]0;t\\x07\\u202e\\ud800": needed\nsecond line\n')


def test_an_error_of_a_million_characters_is_cut(capsys):
    def fail() -> int:
        raise BadInput("x" * 1_000_000)

    exit_code(fail)
    assert len(capsys.readouterr().err) < 30_000


def test_column_names_in_an_error_are_printable_and_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"\\u001b[2J\\u202e": 1, "%s": 2}\n' % ("x" * 10_000))
    with pytest.raises(BadInput) as caught:
        read_rows(path, {"prompt": (str,)})
    message = str(caught.value)
    assert message.isprintable()
    assert '"\\x1b[2J\\u202e", "xxx' in message
    assert len(message) < 1000
