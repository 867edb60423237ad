"""The verifier: turns answers into rewards. It holds no arrays, and any verifier can repeat any batch."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import ray
from msgspec.structs import replace

from actors.failures import FailuresInARow
from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Hello, Judged
from configs.schema import Settings
from runtime import failpoints
from runtime.settlement import Row
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt, Verdict
from runtime.trajectory import StopReason, lists


class Verifier:
    """Scores batches with the task's own verifier."""

    def __init__(self, settings: Settings, run: str, actor: ActorId) -> None:
        began = time.perf_counter()
        self._settings = settings
        self._log = open_log(Path(run) / "logs", actor.name)
        log = Path(run) / "logs" / f"reward-{actor.index}.log"
        self._task = open_task(settings.task, settings.seed, settings.verifier.timeout_s, log)
        self._failures = FailuresInARow(settings.verifier.max_failures)
        self._log.info("started", pid=os.getpid())
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Returns a greeting once the constructor has finished."""
        return Hello(pid=os.getpid(), backend="", seconds=self._started_s)

    @ray.method
    def score(self, batch: pa.RecordBatch, prompts: list[Prompt], judged: bool) -> Judged:
        """Returns the rows of a batch with their verdicts; without any if the rows are not to be
        `judged`.
        """
        failpoints.hit("verify.begin")
        began = time.perf_counter()
        by_index = {prompt.index: prompt for prompt in prompts}
        rows: list[Row] = []
        for row, text, known in rows_of(batch):
            if rows:
                failpoints.hit("verify.row")
            if not judged:
                verdict = Verdict(reward=None)
            elif known is not None:  # the log-likelihood of data: nothing was answered
                verdict = Verdict(reward=known)
            else:
                verdict = self._verdict(by_index[row.prompt], text)
            rows.append(replace(row, verdict=verdict))
        failpoints.hit("verify.done")
        return Judged(rows=rows, seconds=time.perf_counter() - began)

    def _verdict(self, prompt: Prompt, text: str) -> Verdict:
        """Returns the task's verdict. Raises RunFailed after too many failures in a row."""
        verdict = self._task.verify(prompt, text)
        if verdict.failure:
            self._log.warning(
                "failed", prompt=prompt.index, kind=verdict.failure, detail=verdict.detail
            )
        self._failures.see(verdict)
        return verdict

    @ray.method
    def close(self) -> None:
        """Ends the process of a user's reward function."""
        self._task.close()


def rows_of(batch: pa.RecordBatch) -> Iterator[tuple[Row, str, float | None]]:
    """Yields what is known of each row, its text, and the reward if it has one already."""
    lengths = [int(sampled.sum()) for sampled in lists(batch, "sampled")]
    names = ("prompt_index", "sample", "stop_reason", "dropped", "text", "reward")
    columns = (batch.column(name).to_pylist() for name in names)
    for length, prompt, sample, reason, dropped, text, reward in zip(lengths, *columns):
        row = Row(
            prompt=prompt,
            sample=sample,
            tokens=length,
            stop_reason=StopReason(reason),
            dropped=dropped,
        )
        yield row, text, reward
