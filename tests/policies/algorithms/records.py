"""What the tests of algorithms share: rows that the conductor settles, trajectories that the learner sees."""

from typing import Any

import msgspec
import pyarrow as pa

from configs.schema import Settings
from policies.algorithms import open_algorithm
from policies.algorithms.protocol import Algorithm
from policies.learned_rows import learned_rows
from runtime.settlement import Row, Settlement
from runtime.tasks.prompt import Prompt, Verdict
from runtime.trajectory import StopReason, Trajectory, to_batch

BIG = {"big": {"name": "local", "path": "/t"}}
LIMIT_TOKENS = 20


def opened(name: str, **algorithm: Any) -> Algorithm:
    raw = {
        "task": {"name": "addition"},
        "model": {"path": "/m"},
        "algorithm": {"name": name, **algorithm},
        "sampling": {"max_new_tokens": LIMIT_TOKENS, "temperature": 0.75},
        "seed": 5,
    }
    return open_algorithm(msgspec.convert(raw, Settings))


def distillation(**changes: Any) -> Algorithm:
    return opened("distill", **{"teachers": BIG, **changes})


def asked(count: int, teacher: str = "") -> list[Prompt]:
    return [Prompt(task="addition", index=i, messages=[], teacher=teacher) for i in range(count)]


def judged(prompt: int, sample: int, reward: float | None, **changes: Any) -> Row:
    """A row whose answer was judged; without a reward the verifier failed."""
    failure = "raised" if reward is None else None
    passed = None if reward is None else reward >= 1
    parts = {"correct": reward} if reward is not None else {}
    verdict = Verdict(reward=reward, passed=passed, parts=parts, failure=failure)
    values = {"tokens": 4, "stop_reason": "stop", "verdict": verdict}
    return Row(prompt=prompt, sample=sample, **(values | changes))


def groups_of(*rewards: list[float | None]) -> list[Row]:
    """A group of judged answers for each list of rewards."""
    return [
        judged(p, n, reward) for p, group in enumerate(rewards) for n, reward in enumerate(group)
    ]


def dropped(settlement: Settlement) -> list[str | None]:
    return [row.dropped for row in settlement.rows]


def advantages(settlement: Settlement) -> list[float | None]:
    return [row.advantage for row in settlement.rows]


def row(sample: int = 0, **changes: Any) -> Trajectory:
    values = {
        "step": 1, "task": "t", "prompt_index": 0, "sample": sample, "key": 1,
        "tokens": [4, 5, 6, 2], "sampled": [False, False, True, True],
        "logprobs": [0.0, 0.0, -0.5, -1.0], "weights_version": [-1, -1, 0, 0], "prompt_tokens": 2,
        "temperature": 1.0, "stop_reason": StopReason.STOP, "text": "6", "teacher": "big",
        "teacher_logprobs": [0.0, 0.0, -0.25, -2.0],
    }  # fmt: skip
    return Trajectory(**(values | changes))


def data(sample: int = 0, **changes: Any) -> Trajectory:
    unsampled = {
        "stop_reason": StopReason.DATA, "sampled": [False] * 4, "logprobs": [0.0] * 4,
        "weights_version": [-1] * 4, "teacher_logprobs": None,
    }  # fmt: skip
    return row(sample, **(unsampled | changes))


def annotated(algorithm: Algorithm, *rows: Trajectory) -> pa.RecordBatch:
    return algorithm.annotate(to_batch(rows))


def column(batch: pa.RecordBatch, name: str, i: int = 0) -> list[float] | None:
    """A row's annotation on its tokens behind the prompt; None if it has none."""
    values = batch[name][i].as_py()
    assert values is None or values[:2] == [0.0, 0.0], "a prompt is never learned"
    return values and values[2:]


def learned(algorithm: Algorithm, *rows: Trajectory) -> list[dict[str, list[float]]]:
    """The columns of each row that a loss looks at."""
    found = learned_rows(annotated(algorithm, *rows), algorithm.terms(), hosted=False)
    return [{name: values.tolist() for name, values in r.columns.items()} for r in found.rows]
