"""`.ci/run` fails if a target fails and ends with pytest's closing line, tried with a Makefile of fakes."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "run"
PASSED = "======== 3979 passed, 2 skipped, 80 deselected in 355.31s (0:05:55) ========"
BROKEN = "===== 1 failed, 8 passed in 2.31s ====="
SOAKED = "===== 80 passed in 300.00s (0:05:00) ====="
FINE, FAILS = "true", "false"


def outcome(folder: Path, lint: str, test: str, soak: str) -> tuple[int, list[str]]:
    """Returns the exit code and the lines of `.ci/run` where the targets are these shell commands."""
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci" / "run")
    targets = {"lint": lint, "test": test, "soak": soak}
    rules = (f"{name}:\n\t@echo '{name} runs'; {does}\n" for name, does in targets.items())
    (folder / "Makefile").write_text(".PHONY: lint test soak\n" + "".join(rules))
    done = subprocess.run([folder / ".ci" / "run"], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines()


def says(line: str, then: str = FINE) -> str:
    return f"echo '{line}'; {then}"


def test_all_three_run_and_the_last_line_is_that_of_make_test(tmp_path: Path) -> None:
    code, lines = outcome(tmp_path, FINE, says(PASSED), says(SOAKED))
    assert (code, lines[-1]) == (0, PASSED)
    assert [line for line in lines if line.endswith(" runs")] == [
        "lint runs", "test runs", "soak runs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lint", "test", "soak", "last"),
    [
        (FAILS, says(PASSED), says(SOAKED), PASSED),
        (FINE, says(BROKEN, FAILS), says(SOAKED), BROKEN),
        (FINE, says(PASSED), says(SOAKED, FAILS), PASSED),
        (FINE, says("a crash", FAILS), says(SOAKED), "==> pytest did not finish"),
    ],
)
def test_it_fails_if_one_of_them_fails(
    tmp_path: Path, lint: str, test: str, soak: str, last: str
) -> None:
    code, lines = outcome(tmp_path, lint, test, soak)
    assert code != 0
    assert lines[-1] == last
