"""The architecture, as a test: no file imports another that imports it in turn, inside functions included."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("actors", "configs", "kernels", "ops", "policies", "runtime")


def module_name(file: Path) -> str:
    """ "policies.batch" of policies/batch.py; a package's `__init__` has the package's name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, str]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {module_name(file): file.read_text() for file in files}


def packages(modules: Mapping[str, str]) -> set[str]:
    """The modules that have others below them: an `__init__`."""
    return {name.rpartition(".")[0] for name in modules} - {""}


def named(source: str, name: str, is_package: bool) -> Iterator[tuple[str, str | None]]:
    """Each module that `source` names in an import anywhere, with the name it takes from there, if any."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: len(name.split(".")) - node.level + is_package]
            prefix = above if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def graph(modules: Mapping[str, str]) -> dict[str, list[str]]:
    """The modules that each imports by name: `from a import b` is a.b where that is a file, else a.

    Python runs a.b's package a as well, but that is no circle that a person can untie: an `__init__` that
    imports its own files is one only where such a file imports something from the package.
    """
    found = {}
    for name, source in modules.items():
        edges = set()
        for module, member in named(source, name, name in packages(modules)):
            below = f"{module}.{member}"
            edges.add(below if member and below in modules else module)
        found[name] = sorted((edges & modules.keys()) - {name})
    return found


def circles(modules: Mapping[str, str]) -> list[str]:
    """A path "a → b → a" for each import that closes a circle."""
    edges, done, found = graph(modules), set(), []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" → ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in edges[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def test_no_file_imports_one_that_imports_it() -> None:
    assert circles(sources()) == []


def test_the_graph_has_the_tree_in_it() -> None:
    edges = graph(sources())
    assert len(edges) > 100
    assert "policies.batch" in edges["policies.update"]
    assert "policies.weights" in edges["policies.update"], "from policies import weights"
    assert "actors.learner" in edges["actors.program"], "an import inside a function"


@pytest.mark.parametrize(
    ("modules", "circle"),
    [
        ({"a.x": "import a.y", "a.y": "from a.x import f"}, "a.x → a.y → a.x"),
        ({"a.x": "import a.y", "a.y": "def f():\n    from a import x"}, "a.x → a.y → a.x"),
        ({"a": "from a.x import f", "a.x": "from a import register"}, "a → a.x → a"),
        ({"a": "", "a.x": "from . import y", "a.y": "from .x import f"}, "a.x → a.y → a.x"),
        ({"a": "from .x import f", "a.x": "from . import g"}, "a → a.x → a"),
        (
            {"a.x": "import b.x", "b.x": "import c.x", "c.x": "if 1:\n    import a.x"},
            "a.x → b.x → c.x → a.x",
        ),
    ],
)
def test_a_circle_is_noticed(modules: dict[str, str], circle: str) -> None:
    assert circles(modules) == [circle]


@pytest.mark.parametrize(
    "modules",
    [
        {"a.x": "import a.y, a.z", "a.y": "import a.z", "a.z": "import numpy"},
        {"a": "register = 1", "a.x": "from a import register", "a.y": "from a import x"},
    ],
)
def test_two_ways_to_one_file_are_no_circle(modules: dict[str, str]) -> None:
    assert circles(modules) == []
