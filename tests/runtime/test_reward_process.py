"""Whatever a user's reward function does, the result is a number or a named failure, and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.errors import BadInput
from runtime.foreign_environment import environment
from runtime.killable import ROOT
from runtime.reward_process import RewardCall, RewardProcess

HEAD = "def reward(prompt, completion, row):\n"


def written(folder: Path, source: str) -> Path:
    path = folder / "reward.py"
    path.write_text(source)
    return path


def call(completion: str = "x", **row) -> RewardCall:
    return RewardCall(prompt="p", completion=completion, row=row)


@pytest.fixture
def opened(tmp_path):
    processes = []

    def start(source: str, timeout_s: float = 20.0, **more) -> RewardProcess:
        processes.append(RewardProcess(written(tmp_path, source), timeout_s, **more))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # an orphan that no parent waits for
        time.sleep(0.02)
    return False


def test_numbers_are_rewards(opened):
    process = opened(HEAD + "    return eval(row['value'])\n")
    values = {
        "0.5": 0.5,
        "3": 3.0,
        "True": 1.0,
        "False": 0.0,
        "-2.0": -2.0,
        "__import__('numpy').float32(0.5)": 0.5,
        "__import__('numpy').bool_(True)": 1.0,
        "__import__('fractions').Fraction(1, 4)": 0.25,
    }
    verdicts = process.score([call(value=value) for value in values])
    assert [v.reward for v in verdicts] == list(values.values())
    assert all(v.failure is None for v in verdicts)


@pytest.mark.parametrize(
    "value", ["None", "float('nan')", "float('inf')", "-10**400", "'1.0'", "[1]", "1j", "'\\ud800'"]
)
def test_anything_else_is_not_a_number_and_never_a_zero(opened, value):
    verdict = opened(HEAD + f"    return {value}\n").score([call()])[0]
    assert (verdict.reward, verdict.passed, verdict.failure) == (None, None, "not_a_number")
    assert verdict.detail.startswith("needed a finite number, got ")
    assert verdict.detail.isprintable()


def test_an_exception_is_told_with_type_first_line_and_the_users_line(opened):
    process = opened(
        "import json\n\n"
        "def inner(text):\n"
        "    return json.loads(text)\n\n" + HEAD + "    if completion == 'two':\n"
        "        raise KeyError('first\\nsecond')\n"
        "    return inner(completion)\n"
    )
    raised, two, fine = process.score([call("{"), call("two"), call("7")])
    assert (raised.reward, raised.failure) == (None, "raised")
    assert raised.detail.startswith("JSONDecodeError: ")
    assert raised.detail.endswith("(reward.py, line 4)")
    assert two.detail.startswith("KeyError: ")
    assert two.detail.endswith("(reward.py, line 8)")
    assert "\n" not in two.detail
    assert fine.reward == 7.0


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("    raise SystemExit(3)\n", "SystemExit: 3"),
        ("    raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("    return reward(prompt, completion, row)\n", "RecursionError"),
        ("    class Odd(Exception):\n        __str__ = None\n    raise Odd\n", "Odd"),
        ("    raise ValueError('\\ud800\\0')\n", "ValueError"),
    ],
)
def test_exceptions_that_would_break_a_careless_loop_are_raised_too(opened, body, kind):
    process = opened(HEAD + "    if completion == 'fine': return 1\n" + body)
    verdict, fine = process.score([call(), call("fine")])
    assert (verdict.reward, verdict.failure) == (None, "raised")
    assert verdict.detail.startswith(kind)
    assert verdict.detail.isprintable()
    assert fine.reward == 1.0


@pytest.mark.parametrize(
    "body",
    [
        "    while True: pass\n",
        "    import time; time.sleep(1000)\n",
        "    import re; re.match('(a+)+$', 'a' * 60 + 'b')\n",  # holds the interpreter lock
        "    import signal\n    for s in range(1, 30):\n"
        "        if s not in (9, 17, 19): signal.signal(s, signal.SIG_IGN)\n    while True: pass\n",
    ],
)
def test_a_hang_is_killed_in_time_and_the_next_call_works(opened, body):
    process = opened(HEAD + "    if completion == 'fine': return 1\n" + body, timeout_s=0.5)
    started = time.monotonic()
    verdicts = process.score([call("fine"), call(), call("fine")])
    assert time.monotonic() - started < 5
    assert [v.reward for v in verdicts] == [1.0, None, 1.0]
    assert verdicts[1].failure == "timed_out"
    assert verdicts[1].detail == "no answer within 0.5 s"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    import os; os._exit(3)\n", "exit code 3"),
        ("    import os; os.kill(os.getpid(), 9)\n", "signal 9 (Killed"),
        ("    import ctypes; ctypes.string_at(0)\n", "signal 11 (Segmentation fault"),
        ("    import os; os.closerange(3, 100); import time; time.sleep(9)\n", "closed its pipe"),
    ],
)
def test_a_process_that_dies_is_told_with_its_cause_and_started_again(opened, body, said):
    process = opened(HEAD + "    if completion == 'fine': return 1\n" + body)
    started = time.monotonic()
    verdict, fine = process.score([call(), call("fine")])
    assert (verdict.reward, verdict.failure) == (None, "died")
    assert said in verdict.detail
    assert fine.reward == 1.0
    assert time.monotonic() - started < 8


def test_a_child_of_the_function_that_holds_the_pipe_is_killed_and_does_not_block(opened, tmp_path):
    note = tmp_path / "pid"
    process = opened(
        "import os, time\n" + HEAD + "    pid = os.fork()\n"
        "    if pid == 0:\n        time.sleep(1000)\n"
        "    open(row['note'], 'w').write(str(pid))\n"
        "    if completion == 'die': os._exit(1)\n"
        "    time.sleep(1000)\n",
        timeout_s=1.0,
    )
    for completion, failure in (("die", "died"), ("hang", "timed_out")):
        started = time.monotonic()
        verdict = process.score([call(completion, note=str(note))])[0]
        assert verdict.failure == failure
        assert time.monotonic() - started < 4
        assert gone(int(note.read_text()))


def test_a_fork_that_comes_back_from_the_function_is_not_taken_for_an_answer(opened):
    process = opened(
        "import os\n" + HEAD + "    if completion == 'fork': os.fork()\n    return row['n']\n"
    )
    process.score([call("fork", n=7)])
    time.sleep(0.2)
    rest = process.score([call(n=1), call(n=2)])
    assert all(v.failure == "died" or v.reward == n for n, v in zip((1, 2), rest))
    assert rest[-1].reward == 2.0


def test_what_the_function_prints_or_reads_does_not_touch_the_protocol(opened, capfd, tmp_path):
    log = tmp_path / "reward-0.log"
    process = opened(
        "import os, subprocess, sys\nprint('import noise')\n" + HEAD + "    print('{}')\n"
        "    sys.stdout.write('x' * 100_000)\n    os.write(1, b'raw\\n')\n"
        "    subprocess.run(['echo', 'from a program'])\n"
        "    assert sys.stdin.read() == ''\n    return 1\n",
        log=log,
    )
    assert [v.reward for v in process.score([call()] * 3)] == [1.0] * 3
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert log.read_text().startswith("import noise\n")
    assert log.read_text().count("from a program") == 3


def test_arguments_arrive_as_they_were_whatever_they_hold(opened):
    process = opened(
        HEAD + "    return float(len(completion) + 10**9 * (completion == row['c']))\n"
    )
    for text in ("", "\0", "\ud800", "٣²", "\n\r\u2028", "x" * 3_000_000):
        assert process.score([call(text, c=text)])[0].reward == 1e9 + len(text)


def test_the_function_sees_no_secret_and_nothing_of_ray(opened, monkeypatch):
    names = ["RAY_ADDRESS", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "openai_api_key", "DB_PASSWORD"]
    for name in names:
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("MY_SETTING", "shown")
    process = opened(
        "import os\n" + HEAD + "    assert os.environ['MY_SETTING'] == 'shown'\n"
        "    return float(sum(v == 'hidden' for v in os.environ.values()))\n"
    )
    assert process.score([call()])[0].reward == 0.0
    kept = environment({"PATH": "p", "SSH_AUTH_SOCK": "s"}, "root")
    assert set(kept) == {"PATH", "PYTHONPATH", "PYTHONHASHSEED"}


def test_the_file_may_import_its_neighbours_and_leaves_no_bytecode(tmp_path, opened):
    (tmp_path / "neighbour.py").write_text("VALUE = 0.25\n")
    process = opened(
        "from dataclasses import dataclass\nimport neighbour\n\n"
        "@dataclass\nclass Score:\n    value: float = neighbour.VALUE\n\n"
        + HEAD
        + "    return Score().value\n"
    )
    assert process.score([call()])[0].reward == 0.25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["neighbour.py", "reward.py"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\ny = missing\n", "does not import: NameError: name 'missing' is not defined "
         "(reward.py, line 2)"),
        ("import no_such_thing\n", "does not import: ModuleNotFoundError"),
        ("def reward(:\n", "does not import: SyntaxError: invalid syntax (reward.py, line 1)"),
        ("a\0b", "does not import: SyntaxError"),
        ("raise SystemExit(2)\n", "does not import: SystemExit: 2 (reward.py, line 1)"),
        ("import os\nos._exit(4)\n", "does not import: the process ended with exit code 4"),
        ("import time\ntime.sleep(1000)\n", "did not import within 1 s"),
        ("def score(): pass\n", "found nothing of that name"),
        ("reward = 1.0\n", "found a float"),
        ("def reward(prompt, completion): return 1\n", "got reward(prompt, completion)"),
        ("def reward(a, b, c, d): return 1\n", "got reward(a, b, c, d)"),
        ("def reward(a, b, c, *, d): return 1\n", "got reward(a, b, c, *, d)"),
        ("async def reward(a, b, c): return 1\n", "got an async one"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_bad_input_in_one_sentence(tmp_path, source, said):
    path = written(tmp_path, source)
    with pytest.raises(BadInput) as caught:
        RewardProcess(path, timeout_s=1, start_timeout_s=1 if "sleep" in source else 20)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


def test_a_missing_file_and_a_directory_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"none.py: needed a Python file.* nothing of that name"):
        RewardProcess(tmp_path / "none.py", timeout_s=1)
    with pytest.raises(BadInput, match="a directory"):
        RewardProcess(tmp_path, timeout_s=1)


@pytest.mark.parametrize("signature", ["*args", "a, b, c=0, d=1", "prompt, *rest"])
def test_any_signature_that_takes_three_arguments_will_do(opened, signature):
    assert opened(f"def reward({signature}): return 1\n").score([call()])[0].reward == 1.0


def test_opening_imports_and_calls_nothing(tmp_path, opened):
    note = tmp_path / "called"
    opened(HEAD + f"    open({str(note)!r}, 'w')\n    return 1\n")
    assert not note.exists()


def test_a_file_that_breaks_during_a_run_is_a_failure_with_its_cause(opened, tmp_path):
    process = opened(HEAD + "    import os; os._exit(1)\n")
    assert process.score([call()])[0].failure == "died"
    written(tmp_path, "broken")
    verdict = process.score([call()])[0]
    assert verdict.failure == "died"
    assert "could not be started again: does not import: NameError" in verdict.detail


def test_closing_twice_is_harmless_and_ends_the_process(opened, tmp_path):
    process = opened("import os\n" + HEAD + "    return os.getpid()\n")
    reward = process.score([call()])[0].reward
    process.close()
    process.close()
    assert gone(int(reward))


@pytest.mark.parametrize(
    "body",
    ["    return 1\n", "    import re; re.match('(a+)+$', 'a' * 60 + 'b')\n"],
    ids=["idle", "hung in C"],
)
def test_the_process_dies_with_its_parent_even_while_it_hangs(tmp_path, body):
    note = tmp_path / "pid"
    source = f"import os\nopen({str(note)!r}, 'w').write(str(os.getpid()))\n{HEAD}{body}"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from runtime.reward_process import RewardCall, RewardProcess\n"
            "process = RewardProcess(sys.argv[1], timeout_s=1000)\n"
            "print('ready', flush=True)\n"
            "process.score([RewardCall(prompt='', completion='', row={})])\n"
            "time.sleep(1000)\n",
            str(written(tmp_path, source)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert parent.stdout
        assert parent.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        pid = int(note.read_text())
        assert not gone(pid, within_s=0.1)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    assert gone(pid)


def test_a_thousand_calls_are_answered_by_one_process_in_order(opened):
    process = opened("import os\n" + HEAD + "    return 10 * os.getpid() + len(completion)\n")
    rewards = [v.reward for v in process.score([call("x" * (n % 7)) for n in range(1000)])]
    assert [reward % 10 for reward in rewards] == [float(n % 7) for n in range(1000)]
    assert len({reward // 10 for reward in rewards}) == 1, "a process was started for some of them"
