"""What is committed runs anywhere and can be read: no paths of a machine, no download addresses, only pins;
short files and short functions.
"""

import ast
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest

from tests.file_seconds import REAL_RAY, SECONDS, chain, turn

ROOT = Path(__file__).parent.parent
REGISTRIES = re.compile("|".join(f"{a}\\.{b}" for a, b in [
    ("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "(?:org|com)"), ("npmjs", "(?:org|com)"),
    ("crates", "io"), ("artifactory", r"\w+"), ("jfrog", "io"),
]))  # fmt: skip
MACHINE_PATH = re.compile(r"(?<![\w.~}$])/(?:" + "|".join(["work", "root", "home", "Users"]) + ")/")
PIN = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*==\d[\w.]*")
PACKAGES = ("actors", "configs", "kernels", "ops", "policies", "runtime")
LONGEST_FILE, LONGEST_MEDIAN, LONGEST_FUNCTION = 400, 120, 60


def committed() -> list[Path]:
    """What git has, and what it would take."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    out = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [path for name in out.split("\0") if name and (path := ROOT / name).is_file()]


def findings(text: str) -> list[str]:
    return [
        line.strip()[:120]
        for line in text.splitlines()
        if REGISTRIES.search(line) or MACHINE_PATH.search(line)
    ]


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = {}
    for path in committed():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if lines := findings(text):
            found[str(path.relative_to(ROOT))] = lines
    assert found == {}


def test_a_registry_and_a_machine_path_are_noticed() -> None:
    slash = "/"
    assert findings("index-url = https://" + "pypi" + ".org/simple")
    assert findings(f"open('{slash}work{slash}shared')")
    assert findings(f"cd {slash}root{slash}x")
    assert not findings("see shared/work/x and ~/work/x")


def test_constraints_are_only_pins() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))


def test_mlx_and_its_backends_have_one_version() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert pins["mlx"] == pins["mlx-cpu"] == pins["mlx-metal"]


def test_every_direct_requirement_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    quoted = re.findall(r'"([a-z0-9-]+)(?:\[[a-z]+\])?>=', project)
    assert len(quoted) > 8
    assert [name for name in quoted if f"\n{name}==" not in pins and name != "hatchling"] == []


def test_shell_scripts_are_valid() -> None:
    for path in ["ops/openblas.sh", "ops/venv.sh"]:
        assert subprocess.run(["sh", "-n", ROOT / path]).returncode == 0
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0


def sources() -> dict[str, str]:
    """Returns the text of each Python file of the packages."""
    found = {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(found) > 100
    return found


def long_functions(text: str) -> dict[str, int]:
    """Returns the lines of each function that is too long; decorators are not counted."""
    functions = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lines = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    return {name: count for name, count in lines.items() if count > LONGEST_FUNCTION}


def test_files_are_short() -> None:
    lines = {name: text.count("\n") for name, text in sources().items()}
    longer = {name: count for name, count in lines.items() if count > LONGEST_FILE}
    assert longer == {}
    assert statistics.median(lines.values()) <= LONGEST_MEDIAN


def test_functions_are_short() -> None:
    found = {name: long for name, text in sources().items() if (long := long_functions(text))}
    assert found == {}


def test_a_function_of_61_lines_is_noticed() -> None:
    body = "    pass\n"
    assert long_functions("class A:\n  async def f():\n" + 60 * body) == {"f": 61}
    assert long_functions("def f():\n" + 59 * body) == {}


def test_every_file_in_the_order_of_the_workers_exists() -> None:
    assert [name for name in (*REAL_RAY, *SECONDS) if not (ROOT / name).exists()] == []


def test_real_ray_begins_first_then_the_longest_file_and_one_that_is_not_listed_is_last() -> None:
    files = ["tests/a.py", *sorted(SECONDS), *REAL_RAY]
    order = sorted(files, key=turn)
    assert set(order[: len(REAL_RAY)]) == set(REAL_RAY)
    rest = [SECONDS.get(name, 0) for name in order[len(REAL_RAY) :]]
    assert rest == sorted(rest, reverse=True) and order[-1] == "tests/a.py"
    assert len({chain(name) for name in REAL_RAY}) == 1
