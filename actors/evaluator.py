"""The evaluator: measures how good a weights version is on held-out prompts.

The samplers answer, pinned to the version that is evaluated; the evaluator holds the
prompts, keeps the answers and does the statistics.
"""

import math
import os
import time
from pathlib import Path

import msgspec
import pyarrow as pa
import ray

from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Hello
from configs.schema import Settings
from runtime import failpoints
from runtime.durable import write_file
from runtime.settlement import Row
from runtime.status import PASS_AT_1, EvalResult
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt, Verdict


class Evaluator:
    """Measures pass@1 on held-out prompts: the mean over answers, with its standard error over prompts."""

    def __init__(self, settings: Settings, run: str, actor: ActorId) -> None:
        began = time.perf_counter()
        self._settings = settings
        self._folder = Path(run) / "evals"
        self._folder.mkdir(exist_ok=True)
        self._log = open_log(Path(run) / "logs", actor.name)
        self._task = open_task(settings.task, settings.seed)
        self._task.close()  # it gives prompts; the verifiers judge the answers
        self._log.info("started", pid=os.getpid())
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Returns a greeting once the constructor has finished."""
        return Hello(pid=os.getpid(), backend="", seconds=self._started_s)

    @ray.method
    def prompts(self) -> list[Prompt]:
        """Returns the held-out prompts, the same for every version and every seed."""
        failpoints.hit("eval.prompts")
        size = self._task.size("eval")
        count = self._settings.eval.prompts
        return [
            self._task.prompt("eval", i) for i in range(count if size is None else min(count, size))
        ]

    @ray.method
    def summarise(
        self, step: int, metric: str, rows: list[list[Row]], *batches: pa.RecordBatch
    ) -> EvalResult:
        """Returns the result of one evaluation. Every answer is kept: in evals/step-N.jsonl if the
        answers are greedy or the only ones.
        """
        answers = []
        by_prompt: dict[int, list[float]] = {}
        for batch_rows, batch in zip(rows, batches):
            for text, row in zip(batch["text"].to_pylist(), batch_rows):
                verdict = row.verdict or Verdict(reward=None)
                answers.append(
                    {
                        "prompt_index": row.prompt,
                        "sample": row.sample,
                        "text": text,
                        "tokens": row.tokens,
                        "stop_reason": row.stop_reason,
                        "verdict": verdict,
                    }
                )
                if verdict.passed is not None:
                    by_prompt.setdefault(row.prompt, []).append(float(verdict.passed))
        lines = b"".join(msgspec.json.encode(a) + b"\n" for a in answers)
        failpoints.hit("eval.summed_up")
        which = "" if metric == PASS_AT_1 else "-sampled"
        write_file(self._folder / f"step-{step:06d}{which}.jsonl", lines, durable=False)
        failpoints.hit("eval.done")
        means = [sum(group) / len(group) for group in by_prompt.values()]
        score = sum(means) / len(means) if means else None
        variance = sum((m - (score or 0.0)) ** 2 for m in means) / max(len(means) - 1, 1)
        lengths = [a["tokens"] for a in answers]
        return EvalResult(
            step=step,
            task=self._task.name,
            metric=metric,
            score=score,
            n=sum(map(len, by_prompt.values())),
            stderr=math.sqrt(variance / max(len(means), 1)),
            mean_tokens=sum(lengths) / max(len(lengths), 1),
            truncated=sum(a["stop_reason"] == "length" for a in answers) / max(len(answers), 1),
            failed=sum(a["verdict"].failure is not None for a in answers),
        )
