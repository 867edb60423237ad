"""Every setting of a run: a closed schema, in which an unknown key is an error.

A tagged union picks the algorithm, the task, the surrogate and the correction, so that a setting
which would have no effect is an unknown key. Defaults are the tested ones; a recipe holds only
what differs. Nothing here imports MLX or Ray: a bad recipe fails in a fraction of a second.

This file combines the settings of `model`, `tasks`, `teachers`, `losses`, `perturbations`, `run`, and those
of each algorithm in `algorithms/`.
"""

from typing import TYPE_CHECKING, Any, Union

import msgspec
from msgspec import structs

from configs.algorithm import AlgorithmSettings
from configs.algorithms import registered
from configs.facts import Facts
from configs.run import RunSettings

if TYPE_CHECKING:
    Algorithm = AlgorithmSettings
else:
    Algorithm = Union[registered()]  # noqa: UP007 - as many as there are files


class Settings(RunSettings, frozen=True, kw_only=True):
    """All settings of a run."""

    algorithm: Algorithm

    @property
    def facts(self) -> Facts:
        """Returns the facts about the algorithm that the rest of Pippin uses."""
        return self.algorithm.facts(self)


def algorithm(**table: Any) -> AlgorithmSettings:
    """Returns the settings of an `[algorithm]` table with these keys, such as ``algorithm(name="sft")``."""
    return msgspec.convert(table, Union[registered()])  # noqa: UP007


def settings_type() -> type[Settings]:
    """Returns the type that a recipe is decoded as: `Settings`, with the algorithms registered since."""
    union: Any = Union[registered()]  # noqa: UP007
    if union == Settings.__annotations__["algorithm"]:
        return Settings
    options: dict[str, Any] = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True}
    made: Any = msgspec.defstruct("Settings", [("algorithm", union)], bases=(Settings,), **options)
    return made


def plain(settings: Settings) -> Settings:
    """Returns the same settings as the importable class, which can be sent to another process."""
    return Settings(
        **{field.name: getattr(settings, field.name) for field in structs.fields(settings)}
    )
