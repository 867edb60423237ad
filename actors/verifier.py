"""The verifier: turns answers into rewards. Holds no arrays; any of them can do any batch again."""

import os
import time
from pathlib import Path

import pyarrow as pa
import ray

from actors.logs import open_log
from actors.messages import Hello, Scored
from configs.schema import Distill, FromStudent, Grpo, Settings
from policies.advantages import overlong_penalty
from runtime import failpoints
from runtime.errors import RunFailed
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt, Verdict
from runtime.trajectory import StopReason, lists


class Verifier:
    """Scores batches with the task's own verifier."""

    def __init__(self, settings: Settings, run: str, name: str) -> None:
        began = time.perf_counter()
        self._settings = settings
        self._log = open_log(Path(run) / "logs", name)
        log = Path(run) / "logs" / f"reward-{name.rpartition('-')[2]}.log"
        self._task = open_task(settings.task, settings.seed, settings.verifier.timeout_s, log)
        self._rewards = _are_rewards_used(settings)
        self._log.info("started", pid=os.getpid())
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Answers when the constructor has finished."""
        return Hello(pid=os.getpid(), backend="", seconds=self._started_s)

    @ray.method
    def score(self, batch: pa.RecordBatch, prompts: list[Prompt], learning: bool) -> Scored:
        """A verdict for each row. `learning` adds what shapes a reward (DAPO's overlong penalty), and
        where nothing is learned from rewards, asks for none.
        """
        failpoints.hit("verify.begin")
        began = time.perf_counter()
        by_index = {prompt.index: prompt for prompt in prompts}
        lengths = [int(s.sum()) for s in lists(batch, "sampled")]
        verdicts: list[Verdict] = []
        failures: list[str] = []
        columns = (batch.column(name).to_pylist() for name in ("prompt_index", "text", "reward"))
        for index, text, known, length in zip(*columns, lengths):
            if verdicts:
                failpoints.hit("verify.row")
            if learning and not self._rewards:
                verdicts.append(Verdict(reward=None))
                continue
            if known is not None:  # the log-likelihood of data: nothing was answered
                verdicts.append(Verdict(reward=known, passed=None))
                continue
            verdict = self._task.verify(by_index[index], text)
            if verdict.failure:
                self._log.warning(
                    "failed", prompt=index, kind=verdict.failure, detail=verdict.detail
                )
                failures.append(f"{verdict.failure}: {verdict.detail}")
                give_up(failures, self._settings.verifier.max_failures)
            else:
                failures.clear()
            verdicts.append(self._shape(verdict, length) if learning else verdict)
        failpoints.hit("verify.done")
        return Scored(
            verdicts=verdicts,
            lengths=lengths,
            stop_reasons=[StopReason(r) for r in batch.column("stop_reason").to_pylist()],
            seconds=time.perf_counter() - began,
        )

    @ray.method
    def close(self) -> None:
        """End the process of a user's reward function."""
        self._task.close()

    def _shape(self, verdict: Verdict, length: int) -> Verdict:
        algorithm = self._settings.algorithm
        if verdict.reward is None or not isinstance(algorithm, Grpo):
            return verdict
        overlong = algorithm.overlong
        if not overlong.penalty_tokens:
            return verdict
        limit = self._settings.sampling.max_new_tokens
        penalty = overlong.penalty * overlong_penalty(length, limit, overlong.penalty_tokens)
        return Verdict(
            reward=verdict.reward + penalty,
            passed=verdict.passed,
            parts={**verdict.parts, "overlong": penalty},
        )


def _are_rewards_used(settings: Settings) -> bool:
    """Whether something is learned from the rewards of sampled answers."""
    algorithm = settings.algorithm
    if not isinstance(algorithm, Distill):
        return True
    return isinstance(algorithm.learn_from, FromStudent) and algorithm.learn_from.reward > 0


def give_up(failures_in_row: list[str], limit: int) -> None:
    """Raises RunFailed with the first of them when the limit is reached."""
    if len(failures_in_row) >= limit:
        raise RunFailed(
            f"the reward failed {limit} times in a row (verifier.max_failures); "
            f"the first: {failures_in_row[0]}"
        )
