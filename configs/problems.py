"""Contradictions that several algorithms share; each sentence names the keys."""

import json
from collections.abc import Iterator

from msgspec import Struct

from configs.run import RunSettings, Sampling
from configs.tasks import Jsonl


def tag(record: Struct) -> str:
    """Returns the name under which a recipe asks for this kind of record."""
    return str(record.__struct_config__.tag)


def idle_samplers(run: RunSettings, key: str, shares: int) -> Iterator[str]:
    """Yields a sentence if there are more samplers than `shares`, the value of the setting `key`."""
    if run.actors.samplers > shares:
        yield (
            f"actors.samplers = {run.actors.samplers} needs at least as many {key}, got {shares}: "
            "the others would idle"
        )


def small_micro_batches(run: RunSettings) -> Iterator[str]:
    """Yields a sentence if a micro-batch may not hold one whole answer."""
    if run.actors.micro_batch_tokens <= run.sampling.max_new_tokens:
        yield (
            f"actors.micro_batch_tokens = {run.actors.micro_batch_tokens} must exceed "
            f"sampling.max_new_tokens = {run.sampling.max_new_tokens}: "
            "a micro-batch holds at least one whole sequence"
        )


def unused_temperature(run: RunSettings, why: str) -> Iterator[str]:
    """Yields a sentence if sampling.temperature was set although nothing is sampled at it."""
    if run.sampling.temperature != Sampling().temperature:
        yield f"sampling.temperature has no effect{why}"


def missing_column(run: RunSettings, column: str, needed_by: str, what: str) -> Iterator[str]:
    """Yields a sentence if a user's task lacks the column or reward file that `needed_by` needs."""
    if isinstance(run.task, Jsonl) and not getattr(run.task, column):
        yield f"{needed_by} needs task.{column}, {what}"


def quoted(text: str) -> str:
    """Returns a string as it stands in a recipe."""
    return json.dumps(text, ensure_ascii=False)
