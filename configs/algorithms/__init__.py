"""Settings of the algorithms, one file each: the keys, their contradictions, and what their numbers mean.

Every file in this folder is imported, and adds its settings class as one more value of `[algorithm] name`.
The file of the same name in `policies/algorithms` trains by these settings. `register` adds an algorithm
from elsewhere, such as one in a test.
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
    """Adds a settings class under its tag and returns it, as a class decorator.

    Raises ValueError for a tag that is taken.
    """
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
