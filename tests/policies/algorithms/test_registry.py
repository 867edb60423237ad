"""Each algorithm is one file of settings and one of behaviour, and nobody else names its settings."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from configs.algorithm import AlgorithmSettings
from configs.algorithms import registered
from configs.schema import Settings, algorithm
from policies.algorithms import open_algorithm

ROOT = Path(__file__).parents[3]
PACKAGES = ("actors", "configs", "kernels", "ops", "policies", "runtime")
SHARED = {"__init__", "metrics", "protocol"}
"""Files of policies/algorithms that belong to no one algorithm."""
MAY_NAME = ("configs/algorithms/", "policies/algorithms/", "configs/schema.py")
NEEDED = {"distill": {"teachers": {"big": {"name": "local", "path": "/t"}}}}
"""What an algorithm's settings need beside their name."""


def stems(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob("*.py")} - SHARED


def files() -> Iterator[Path]:
    return (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def settings_classes() -> set[str]:
    """The name of every class that a file of configs/algorithms defines."""
    trees = (ast.parse(p.read_text()) for p in (ROOT / "configs/algorithms").glob("*.py"))
    return {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}


def breaches(source: str, file: str, classes: set[str]) -> list[str]:
    """Identifiers of `source` that name a settings class, where `file` may not.

    A class of the same name that the file defines itself or has from another module than `configs` is not
    meant: kernels have a TopK of their own.
    """
    if file.startswith(MAY_NAME):
        return []
    own: set[str] = set()
    named: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef(name=name):
                own.add(name)
            case ast.ImportFrom(module=module, level=level, names=names):
                foreign = level == 0 and (module or "").partition(".")[0] != "configs"
                (own if foreign else named).update(alias.name for alias in names)
            case ast.Name(id=name):
                named.add(name)
            case ast.Attribute(attr=name):
                named.add(name)
    return sorted((named & classes) - own)


def run_of(settings: AlgorithmSettings) -> Settings:
    raw: dict[str, Any] = {"task": {"name": "addition"}, "model": {"path": "/m"}}
    return msgspec.convert(raw | {"algorithm": msgspec.to_builtins(settings)}, Settings)


def test_every_file_of_settings_has_a_file_of_behaviour_and_the_other_way_round() -> None:
    assert stems("configs/algorithms") == stems("policies/algorithms") >= {"grpo", "sft"}


def test_every_file_registers_the_algorithm_of_its_name() -> None:
    tags = {str(kind.__struct_config__.tag): kind for kind in registered()}
    ours = {tag: k for tag, k in tags.items() if k.__module__.startswith("configs.algorithms.")}
    assert {kind.__module__.rpartition(".")[2] for kind in ours.values()} == stems(
        "configs/algorithms"
    )
    for tag, kind in ours.items():
        settings = algorithm(name=tag, **NEEDED.get(tag, {}))
        assert type(settings) is kind
        found = open_algorithm(run_of(settings))
        assert type(found).__module__ == kind.__module__.replace("configs.", "policies.")


@pytest.mark.parametrize("tag", sorted(str(k.__struct_config__.tag) for k in registered()))
def test_trainer_and_weight_loader_are_classes_that_exist(tag: str) -> None:
    found = open_algorithm(run_of(algorithm(name=tag, **NEEDED.get(tag, {}))))
    for place in (found.trainer, found.weight_loader):
        module, _, name = place.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_settings_without_an_algorithm_are_an_error_that_names_them() -> None:
    class Homeless(AlgorithmSettings, frozen=True, tag="homeless"):
        """Settings that nothing was registered for."""

    run = run_of(algorithm(name="sft"))
    with pytest.raises(LookupError, match=r"policies.algorithms: no file there adds Homeless"):
        open_algorithm(replace(run, algorithm=Homeless()))


def test_only_the_algorithm_s_own_files_name_its_settings() -> None:
    classes = settings_classes()
    assert {"Grpo", "Overlong", "Distill", "FromStudent", "Es", "Sft"} <= classes
    found = {}
    for path in files():
        name = str(path.relative_to(ROOT))
        if named := breaches(path.read_text(), name, classes):
            found[name] = named
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "from configs.algorithms.grpo import Grpo",
        "from configs.algorithms.grpo import Grpo as Settings",
        "def f():\n    from configs.schema import Grpo",
        "from configs.algorithms import grpo\nisinstance(x, grpo.Grpo)",
        "x = match_this(Grpo)",
        "match x:\n    case Grpo(group_size=n):\n        pass",
        "def f(x: Grpo) -> None: ...",
        "from .algorithms.grpo import Grpo",
    ],
)
def test_a_breach_is_noticed(source: str) -> None:
    for file in ("actors/conductor.py", "policies/update.py", "ops/report.py", "configs/load.py"):
        assert breaches(source, file, settings_classes()) == ["Grpo"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("policies/algorithms/grpo.py", "from configs.algorithms.grpo import Grpo"),
        ("configs/schema.py", "from configs.algorithms.grpo import Grpo"),
        ("policies/frozen.py", "from kernels.teacher import TopK\nx: TopK"),
        ("kernels/teacher.py", "class TopK: ...\nTeacher = TopK"),
        ("ops/report.py", 'label = "Grpo"'),
    ],
)
def test_what_is_allowed_is_allowed(file: str, source: str) -> None:
    assert breaches(source, file, settings_classes()) == []


def test_no_algorithm_imports_arrays_of_mlx() -> None:
    """The conductor asks an algorithm too, and starts in a fraction of a second."""
    code = (
        "import sys, pkgutil, importlib, policies.algorithms as a\n"
        "for m in pkgutil.iter_modules(a.__path__): importlib.import_module(a.__name__+'.'+m.name)\n"
        "print('mlx' in sys.modules, len(a.ALGORITHMS._kinds))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    mlx, count = done.stdout.split()
    assert mlx == "False" and int(count) == len(stems("policies/algorithms"))
