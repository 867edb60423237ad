"""The reader: makes trajectory batches of data rows, for supervised learning."""

import os
import time
from pathlib import Path

import pyarrow as pa
import ray

from actors.logs import open_log
from actors.messages import Hello
from configs.schema import Settings
from policies.model import context_length, load_tokens
from policies.rows import from_data
from runtime.tasks.prompt import Prompt
from runtime.trajectory import to_batch


class Reader:
    """Holds the tokenizer, no weights."""

    def __init__(self, settings: Settings, run: str, name: str) -> None:
        began = time.perf_counter()
        self._log = open_log(Path(run) / "logs", name)
        self._tokens = load_tokens(settings.model, Path(settings.model.path))
        self._limit = context_length(Path(settings.model.path))
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
