"""Settings of the algorithms, one file each: what may be asked for, what contradicts itself, what it means.

A file here is found by being here: its settings class is one more case of `[algorithm] name = …`. What an
algorithm does with its settings is the file of the same name in `policies/algorithms`. An algorithm from
elsewhere, such as a test's, is added by `register`.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import TypeVar

from configs.algorithm import AlgorithmSettings

A = TypeVar("A", bound=AlgorithmSettings)
_REGISTERED: dict[str, type[AlgorithmSettings]] = {}


def register(settings: type[A]) -> type[A]:
    """Adds a settings class under its tag; a class decorator. Raises ValueError for a tag that is taken."""
    tag = str(settings.__struct_config__.tag)
    if _REGISTERED.setdefault(tag, settings) is not settings:
        raise ValueError(f"[algorithm] name = {tag!r} is taken by {_REGISTERED[tag].__module__}")
    return settings


@contextlib.contextmanager
def temporarily(settings: type[AlgorithmSettings]) -> Iterator[None]:
    """Has a settings class added within the block, and forgotten behind it. Raises as `register` does."""
    register(settings)
    try:
        yield
    finally:
        del _REGISTERED[str(settings.__struct_config__.tag)]


def registered() -> tuple[type[AlgorithmSettings], ...]:
    """Returns the settings classes of all algorithms, those of this folder first."""
    for name in module_names():
        importlib.import_module(f"{__name__}.{name}")
    return tuple(_REGISTERED.values())


def module_names() -> Iterator[str]:
    """Yields the names of the files in this folder."""
    for module in pkgutil.iter_modules(__path__):
        yield module.name
