"""The architecture, as a test: which package may import which, and who may say what."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "configs": set(),
    "kernels": set(),
    "runtime": {"configs"},
    "policies": {"configs", "kernels", "runtime"},
    "actors": {"configs", "policies", "runtime"},
    "ops": {"actors", "configs", "kernels", "policies", "runtime"},
}
ONLY_IN = {"ray": {"actors", "ops"}, "mlx": {"kernels", "policies", "actors", "ops"}}
MLX_LM = ("policies/mlx_lm_port.py", "ops/bench/")
"""Who imports mlx_lm; a benchmark may measure against it."""
KINDS = {
    **dict.fromkeys(("Full", "Lora"), ("configs/", "policies/adapters/", "ops/doctor.py")),
    "AdamW": ("policies/optimizers/",),
}
"""Who may name a kind of adapter or optimiser; all others ask its registry (the doctor tries LoRA out)."""
RAY_REMOTE = "actors/program.py"
KEYLESS = {"key", "split"}
"""Members of mx.random that take no state."""

FILES = sorted(path for layer in MAY_IMPORT for path in (ROOT / layer).rglob("*.py"))


def layer_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def dotted(node: ast.AST) -> str:
    """ "mx.random.uniform" of an attribute chain; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def violations(source: str, name: str) -> Iterator[str]:
    """What `source` says that only some other file may say."""
    tree = ast.parse(source)
    layer = name.partition("/")[0]
    for imported in sorted(imports(tree)):
        if imported in MAY_IMPORT and imported != layer and imported not in MAY_IMPORT[layer]:
            yield f"{layer} may not import {imported}"
        if imported in ONLY_IN and layer not in ONLY_IN[imported]:
            yield f"{imported} belongs in {sorted(ONLY_IN[imported])}, not {layer}"
        if imported == "mlx_lm" and not name.startswith(MLX_LM):
            yield f"mlx_lm belongs in {MLX_LM[0]}"
        foreign = imported not in {"msgspec", "configs", *sys.stdlib_module_names}
        if layer == "configs" and foreign and imported not in {*MAY_IMPORT, *ONLY_IN, "mlx_lm"}:
            yield f"configs may import msgspec and the standard library, not {imported}"
    for node in ast.walk(tree):
        yield from said(node, name)


def said(node: ast.AST, name: str) -> Iterator[str]:
    if dotted(node) == "ray.remote" and name != RAY_REMOTE:
        yield f"ray.remote is said in {RAY_REMOTE} alone"
    if isinstance(node, ast.ImportFrom) and node.module == "ray":
        yield from ("import ray, not names from it" for a in node.names if a.name == "remote")
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("configs", "policies")):
        for alias in node.names:
            if alias.name in KINDS and not name.startswith(KINDS[alias.name]):
                yield f"{alias.name} is one kind of many: ask its registry"
    if isinstance(node, ast.ImportFrom) and node.module in ("mlx.core.random", "random"):
        yield f"no generator of {node.module}: all randomness is keyed"
    if not isinstance(node, ast.Call):
        return
    callee = dotted(node.func)
    if callee.endswith("set_wired_limit"):
        yield "set_wired_limit is never called"
    owner, _, member = callee.rpartition(".")
    keyed = any(keyword.arg == "key" for keyword in node.keywords)
    if owner in ("mx.random", "mlx.core.random") and member not in KEYLESS and not keyed:
        yield f"{callee} without a key draws from the default generator"


def test_imports_point_downwards_and_each_says_only_what_it_may() -> None:
    found = {}
    for file in FILES:
        name = str(file.relative_to(ROOT))
        if breaches := list(violations(file.read_text(), name)):
            found[name] = breaches
    assert len(FILES) > 100
    assert found == {}


def test_every_package_folder_is_a_package() -> None:
    # A recipe's folder, such as configs/own-task, is data that a run reads, not a package.
    folders = {file.parent for file in FILES if file.parent.name.isidentifier()}
    assert len(folders) >= len(MAY_IMPORT)
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("policies/x.py", "import ray", "ray belongs in ['actors', 'ops'], not policies"),
        ("runtime/x.py", "import mlx.core as mx", "mlx belongs in"),
        ("runtime/x.py", "def f():\n    from actors import learner", "may not import actors"),
        ("configs/x.py", "import numpy", "not numpy"),
        ("configs/x.py", "import runtime.errors", "configs may not import runtime"),
        ("policies/x.py", "from mlx_lm import load", "mlx_lm belongs in policies/mlx_lm_port.py"),
        ("ops/x.py", "from configs.schema import Lora", "Lora is one kind of many"),
        (
            "policies/x.py",
            "from policies.optimizers.adamw import AdamW",
            "AdamW is one kind of many",
        ),
        ("actors/x.py", "import ray\nL = ray.remote(L)", "ray.remote is said in"),
        ("actors/x.py", "from ray import remote", "import ray, not names from it"),
        ("kernels/x.py", "g = mx.random.gumbel((3,))", "without a key"),
        ("kernels/x.py", "mx.random.seed(0)", "without a key"),
        ("runtime/x.py", "from random import choice", "all randomness is keyed"),
        ("actors/x.py", "mx.set_wired_limit(0)", "never called"),
    ],
)
def test_a_breach_is_noticed(name: str, source: str, complaint: str) -> None:
    assert any(complaint in violation for violation in violations(source, name))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("policies/mlx_lm_port.py", "import mlx_lm\nimport mlx.core as mx"),
        ("actors/program.py", "import ray\nL = ray.remote(L)"),
        ("kernels/x.py", "g = mx.random.gumbel((3,), key=mx.random.key(1))"),
        ("policies/x.py", "mx.set_wired_limit = refuse"),
        ("configs/x.py", "import tomllib\nimport msgspec"),
    ],
)
def test_what_is_allowed_is_allowed(name: str, source: str) -> None:
    assert list(violations(source, name)) == []


@pytest.mark.parametrize("module", ["ops.cli", "ops.supervise", "ops.host", "actors.program"])
def test_who_only_steers_imports_no_arrays(module: str) -> None:
    """MLX and what it brings cost a second of every start, pause and resume."""
    heavy = ("mlx", "mlx_lm", "transformers")
    code = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
