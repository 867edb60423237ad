"""The fields and methods that every algorithm's settings have in common."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec.structs import replace

from configs.facts import Facts
from configs.fields import Closed, up_to
from configs.run import RunSettings


class AlgorithmSettings(Closed, frozen=True, kw_only=True, tag_field="name"):
    """Settings under `[algorithm]`. A subclass has its own tag and fields, and the first three methods."""

    steps: Annotated[int, up_to(10**7)] = 100

    def facts(self, run: RunSettings) -> Facts:
        """Returns what the rest of Pippin may know about this algorithm in this run."""
        raise NotImplementedError

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields one sentence, with the keys, for each contradiction between these settings and the run's."""
        raise NotImplementedError

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields the sentences of `pippin check` about this recipe, such as its trajectories per step."""
        raise NotImplementedError

    def with_teachers(self, paths: Mapping[str, str]) -> "AlgorithmSettings":
        """Returns the settings with `paths` (teacher's name → folder) in place of the recipe's paths."""
        if not paths:
            return self
        teachers: dict[str, Any] = dict(getattr(self, "teachers", {}))
        teachers |= {name: replace(teachers[name], path=path) for name, path in paths.items()}
        return replace(self, teachers=teachers)
