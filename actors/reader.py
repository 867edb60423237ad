"""The reader: makes trajectory batches of data rows, for supervised learning."""

import os
import time
from pathlib import Path

import pyarrow as pa
import ray

from actors.logs import open_log
from actors.messages import Hello
from configs.distillation import is_token_level
from configs.schema import Distill, LocalTeacher, Settings
from policies.load import context_length, load_tokens
from policies.rows import from_data
from runtime.tasks.prompt import Prompt
from runtime.trajectory import to_batch


class Reader:
    """Holds the tokenizer, no weights."""

    def __init__(self, settings: Settings, run: str, name: str) -> None:
        began = time.perf_counter()
        self._log = open_log(Path(run) / "logs", name)
        self._tokens = load_tokens(settings.model, Path(settings.model.path))
        self._limit = min(context_length(folder) for folder in _read_by(settings))
        self._log.info("started", pid=os.getpid())
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Answers when the constructor has finished."""
        return Hello(pid=os.getpid(), backend="", seconds=self._started_s)

    @ray.method(num_returns=2)
    def read(self, step: int, prompts: list[Prompt]) -> tuple[list[str | None], pa.RecordBatch]:
        """Rows as a batch, and for each why it is dropped, if it is."""
        rows = from_data(self._tokens, prompts, step=step, limit=self._limit)
        metadata = {"pippin.tokenizer": self._tokens.fingerprint}
        return [row.dropped for row in rows], to_batch(rows, metadata)


def _read_by(settings: Settings) -> list[Path]:
    """Checkpoints for which a row may be too long: the model, and teachers that score it."""
    algorithm = settings.algorithm
    teachers = algorithm.teachers.values() if isinstance(algorithm, Distill) else ()
    scoring = [t for t in teachers if isinstance(t, LocalTeacher) and is_token_level(algorithm)]  # type: ignore[arg-type]
    return [Path(settings.model.path), *(Path(teacher.path) for teacher in scoring)]
