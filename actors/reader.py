"""The reader: makes trajectory batches of data rows, for supervised learning."""

import os
import time
from pathlib import Path

import pyarrow as pa
import ray

from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Hello
from actors.verifier import rows_of
from configs.schema import Settings
from configs.teachers import LocalTeacher
from policies.load import context_length, load_tokens
from policies.rows import from_data, from_preferences
from runtime.settlement import Row
from runtime.tasks.prompt import Prompt
from runtime.trajectory import to_batch


class Reader:
    """Holds the tokenizer, and no weights."""

    def __init__(self, settings: Settings, run: str, actor: ActorId) -> None:
        began = time.perf_counter()
        self._log = open_log(Path(run) / "logs", actor.name)
        self._tokens = load_tokens(settings.model, Path(settings.model.path))
        self._facts = settings.facts
        self._limit = min(context_length(folder) for folder in _read_by(settings))
        self._log.info("started", pid=os.getpid())
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Returns a greeting once the constructor has finished."""
        return Hello(pid=os.getpid(), backend="", seconds=self._started_s)

    @ray.method(num_returns=2)
    def read(self, step: int, prompts: list[Prompt]) -> tuple[list[Row], pa.RecordBatch]:
        """Returns what is known of each row (with the reason if it is dropped), and the batch."""
        if self._facts.reads_pairs:
            rows = from_preferences(
                self._tokens,
                prompts,
                step=step,
                limit=self._limit,
                paired=self._facts.paired,
            )
        else:
            rows = from_data(self._tokens, prompts, step=step, limit=self._limit)
        batch = to_batch(rows, {"pippin.tokenizer": self._tokens.fingerprint})
        return [row for row, _, _ in rows_of(batch)], batch


def _read_by(settings: Settings) -> list[Path]:
    """Returns the checkpoints for which a row may be too long: the model's, and those of teachers that
    score it.
    """
    facts = settings.facts
    scoring = [
        Path(teacher.path)
        for teacher in facts.teachers.values()
        if isinstance(teacher, LocalTeacher) and facts.shares_tokens
    ]
    return [Path(settings.model.path), *scoring]
