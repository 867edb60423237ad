"""Our top-level names are generic: each must be ours, whatever else is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["actors", "configs", "kernels", "ops", "policies", "runtime"])
def test_the_name_is_this_checkout_s_from_anywhere(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print(u.find_spec({name!r}).origin)"
    found = subprocess.run(
        [sys.executable, "-E", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()) == ROOT / name / "__init__.py"
