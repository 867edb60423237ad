"""The settings that decide what a run computes; the others set where, how fast, and what is kept.

A run is resumed only with the decisive settings that it began with. Otherwise a recipe that was edited or
damaged since would silently change what the run computes.
"""

from fnmatch import fnmatchcase
from typing import Any

import msgspec

from configs.schema import Settings

FREE = (
    "model.path",
    "algorithm.cache_gb",
    "algorithm.teachers.*.path",
    "algorithm.teachers.*.url",
    "algorithm.teachers.*.key_variable",
    "algorithm.teachers.*.concurrency",
    "algorithm.teachers.*.attempts",
    "algorithm.teachers.*.timeout_s",
    "model.gradient_checkpointing",
    "task.train",
    "task.eval",
    "task.reward",
    "sampling.slots",
    "checkpoint",
    "actors",
    "verifier",
    "deadlines",
    "power",
    "mismatch",
    "dashboard",
)
"""Tables and keys that may change between two starts of a run, since files move and memory can be short."""


def decisive(settings: Settings) -> dict[str, Any]:
    """Returns the decisive settings by their full names."""
    found: dict[str, Any] = {}
    _flatten(msgspec.to_builtins(settings), "", found)
    return found


def _flatten(table: dict[str, Any], prefix: str, into: dict[str, Any]) -> None:
    for key, value in table.items():
        name = prefix + key
        if any(fnmatchcase(name, free) for free in FREE):
            continue
        if isinstance(value, dict) and value:
            _flatten(value, f"{name}.", into)
        else:
            into[name] = value
