"""Which settings decide what a run computes; the others say where, how fast, and what is kept.

A run goes on only with the decisive ones that it began with: a recipe that has changed since, by a hand or
by a flipped bit, would make it another run without a word.
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
"""Tables and keys that may change: files may be moved, and memory may be short."""


def decisive(settings: Settings) -> dict[str, Any]:
    """The settings that decide, by their full names."""
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
