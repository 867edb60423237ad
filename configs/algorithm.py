"""What every algorithm's settings have in common, and what they can be asked."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec.structs import replace

from configs.facts import Facts
from configs.fields import Closed, up_to
from configs.run import RunSettings


class AlgorithmSettings(Closed, frozen=True, kw_only=True, tag_field="name"):
    """Settings under `[algorithm]`. A subclass has its own tag, fields, and the three methods below."""

    steps: Annotated[int, up_to(10**7)] = 100

    def facts(self, run: RunSettings) -> Facts:
        """Returns what the rest of Pippin may know about this algorithm in this run."""
        raise NotImplementedError

    def problems(self, run: RunSettings) -> Iterator[str]:
        """Yields every contradiction that this algorithm sees, a sentence with the keys each."""
        raise NotImplementedError

    def sentences(self, run: RunSettings) -> Iterator[str]:
        """Yields what the numbers multiply to, a sentence each, for `pippin check`."""
        raise NotImplementedError

    def with_teachers(self, paths: Mapping[str, str]) -> "AlgorithmSettings":
        """Returns the settings with the folders of these local teachers in place of what the recipe names."""
        if not paths:
            return self
        mine: dict[str, Any] = dict(getattr(self, "teachers", {}))
        mine |= {name: replace(mine[name], path=path) for name, path in paths.items()}
        return replace(self, teachers=mine)
