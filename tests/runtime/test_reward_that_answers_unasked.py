"""A reward file that writes lines of the protocol while it is imported: refused or harmless."""

import pytest

from runtime.errors import BadInput
from runtime.reward_process import RewardCall, RewardProcess

SOURCE = """
import os, time
for descriptor in range(3, 64):
    try:
        os.write(descriptor, {line!r})
    except OSError:
        pass
time.sleep(0.3)  # it is read before what is said next


def reward(prompt, completion, row):
    return 0.25
"""
LINES = [b"[1]\n", b"{}\n", b"no JSON\n"]
FORGED = b'{"problem": ""}\n{"number": 1, "reward": 9.0}\n'


@pytest.mark.parametrize("line", [*LINES, FORGED], ids=lambda line: line[:16].decode())
def test_a_reward_file_that_answers_at_import_gives_no_traceback_and_no_reward(tmp_path, line):
    path = tmp_path / "reward.py"
    path.write_text(SOURCE.format(line=line))
    try:
        process = RewardProcess(path, timeout_s=5, start_timeout_s=10)
    except BadInput as refused:
        assert str(refused).startswith(f"{path}: ") and "\n" not in str(refused)
        return
    try:
        (verdict,) = process.score([RewardCall(prompt="p", completion="c", row={})])
    finally:
        process.close()
    assert verdict.reward in (None, 0.25)
