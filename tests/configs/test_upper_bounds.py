"""Every count has an upper bound: a slip of the finger is refused, not started until the memory is full."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import inspect

from configs import SettingsError, load
from configs.schema import Settings

RECIPE = Path(__file__).parents[2] / "configs" / "quickstart.toml"
LARGEST = 2**24
"""No count of ours is meant to be larger; only the seed is no count."""


def integers(kind: inspect.Type, key: str) -> Iterator[tuple[str, inspect.IntType]]:
    """Every integer of the schema, by its key."""
    match kind:
        case inspect.Metadata():
            yield from integers(kind.type, key)
        case inspect.StructType():
            for field in kind.fields:
                yield from integers(field.type, f"{key}.{field.encode_name}".lstrip("."))
        case inspect.UnionType():
            for variant in kind.types:
                yield from integers(variant, key)
        case inspect.DictType():
            yield from integers(kind.value_type, f"{key}.*")
        case inspect.ListType():
            yield from integers(kind.item_type, f"{key}[]")
        case inspect.IntType():
            yield key, kind


def test_every_count_has_an_upper_bound():
    free = ("seed", "model.chat_template.*", "algorithm.teachers.*.chat_template.*")
    found = dict(integers(inspect.type_info(Settings), ""))
    assert {"actors.samplers", "algorithm.group_size", "sampling.slots"} <= set(found)
    unbounded = [
        key
        for key, kind in found.items()
        if key not in free and not (kind.le or LARGEST + 1) <= LARGEST
    ]
    assert unbounded == []


@pytest.mark.parametrize(
    "key", ["actors.samplers", "actors.verifiers", "algorithm.group_size", "sampling.slots"]
)
def test_a_count_of_two_thousand_million_is_refused_by_its_bound(key):
    with pytest.raises(
        SettingsError, match=rf"^--set: {key} needs an integer from \d+ to \d+, got"
    ):
        load(RECIPE, [f"{key}=2147483648"])
