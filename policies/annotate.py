"""Trajectories as rows that a loss looks at: what each token weighs in each of the three terms.

    row                     policy gradient    cross-entropy    divergence
    sampled, GRPO           advantage          –                –
    data, SFT               –                  1                –
    sampled, distilled      teacher's, task's  –                1
    data, teacher's text    –                  1 − alpha        alpha

This is all that the learner knows of an algorithm. A row that was dropped, or whose task reward is
needed and could not be had, is left out.

Shapes: R tokens of one trajectory's answer, K kept ids of a teacher.
"""

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from msgspec import Struct

from configs.distillation import is_hosted
from configs.schema import Distill, FromStudent, SampledToken, TextOnly, TopK
from policies import teacher_advantages
from policies.advantages import Floats
from policies.batch import Row
from policies.objectives.divergence import soft_target_weights
from runtime.trajectory import StopReason, answer_positions, lists


class Weights(Struct, frozen=True):
    """What a token weighs: of an answer that is imitated, and of the policy's own."""

    imitated_ce: float = 1.0
    imitated_divergence: float = 0.0
    own_pg: float = 1.0
    own_divergence: float = 0.0


class Annotated(Struct, frozen=True):
    """A step's rows, with what stands beside each."""

    rows: list[Row]
    groups: list[int]
    """The prompt of each: updates share out whole groups."""
    teachers: list[str]
    """Who is asked about each; "" for nobody."""


def weights_of(distill: Distill | None) -> Weights:
    """The table above."""
    if distill is None:
        return Weights()
    source = distill.learn_from
    divergence = 0.0 if isinstance(distill.signal, SampledToken | TextOnly) else 1.0
    if isinstance(source, FromStudent):
        pg = isinstance(distill.signal, SampledToken) or source.reward > 0
        return Weights(0.0, 0.0, float(pg), divergence)
    if not divergence:
        return Weights(1.0, 0.0, 0.0, 0.0)
    ce, soft = soft_target_weights(source.alpha)
    return Weights(ce, soft, 0.0, 1.0)


def annotate(batch: pa.RecordBatch, distill: Distill | None = None) -> Annotated:
    """The rows that a loss looks at, in the batch's order."""
    weights = weights_of(distill)
    tokens, logprobs = lists(batch, "tokens"), lists(batch, "logprobs")
    positions = answer_positions(batch)
    prompts = batch["prompt_index"].to_pylist()
    teachers = batch["teacher"].to_pylist()
    taught = _taught(batch, positions, distill)
    rows, groups, asked = [], [], []
    for i, imitated, task in _used(batch, distill):
        ones = np.ones(len(positions[i]), np.float32)
        advantages, known = ones * np.float32(task), ones
        if i in taught and not imitated:
            advantages, known = teacher_advantages.annotated(
                teacher_advantages.combined(task, taught[i], 1.0)
            )
        divergence = weights.imitated_divergence if imitated else weights.own_divergence
        columns = {
            "behaviour": logprobs[i][positions[i]],
            "advantage": advantages,
            "pg_weight": known * np.float32(0.0 if imitated else weights.own_pg),
            "ce_weight": ones * np.float32(weights.imitated_ce if imitated else 0.0),
            "divergence_weight": ones * np.float32(divergence),
        }
        rows.append(Row(tokens[i], positions[i], columns | _kept(batch, i, distill)))
        groups.append(prompts[i])
        asked.append(teachers[i] or "" if distill and is_hosted(distill) else "")
    return Annotated(rows, groups, asked)


def reverse_kl(batch: pa.RecordBatch, distill: Distill) -> tuple[float, int]:
    """Mean of log p − log t over the sampled tokens that are trained on, which estimates KL(p‖t), and
    how many of them the teacher said nothing usable of.
    """
    taught = _rewards(batch, answer_positions(batch))
    used = [taught[i] for i, imitated, _ in _used(batch, distill) if not imitated]
    if not used:
        return math.nan, 0
    every = np.concatenate(used)
    unusable = int(np.isnan(every).sum())
    return (-float(np.nanmean(every)) if unusable < len(every) else math.nan), unusable


def _used(batch: pa.RecordBatch, distill: Distill | None) -> Iterator[tuple[int, bool, float]]:
    """Rows that are trained on: number, whether the answer is another's, and the task's advantage."""
    source = distill.learn_from if distill else None
    reward = source.reward if isinstance(source, FromStudent) else 0.0
    columns = ("dropped", "stop_reason", "author", "advantage")
    rows = zip(*(batch[name].to_pylist() for name in columns))
    for i, (dropped, stop_reason, author, advantage) in enumerate(rows):
        imitated = stop_reason == StopReason.DATA or author is not None
        needs_advantage = not imitated and (distill is None or reward > 0)
        if dropped is not None or (needs_advantage and advantage is None):
            continue
        scale = 1.0 if distill is None else reward
        yield i, imitated, scale * advantage if needs_advantage else 0.0


def _taught(
    batch: pa.RecordBatch, positions: list[np.ndarray], distill: Distill | None
) -> dict[int, Floats]:
    """The teacher's advantages of each row that is trained on, where it is asked for them."""
    if distill is None or not isinstance(distill.signal, SampledToken):
        return {}
    signal, rewards = distill.signal, _rewards(batch, positions)
    used = {i: rewards[i] for i, imitated, _ in _used(batch, distill) if not imitated}
    if signal.credit == "reward_to_go":
        used = {
            i: teacher_advantages.reward_to_go(r, length_normalized=True) for i, r in used.items()
        }
    if signal.whiten:
        used = dict(zip(used, teacher_advantages.whitened(list(used.values()))))
    return used


def _rewards(batch: pa.RecordBatch, positions: list[np.ndarray]) -> list[Floats]:
    """log t − log p of each answer's tokens."""
    logprobs, theirs = lists(batch, "logprobs"), lists(batch, "teacher_logprobs")
    said = batch["teacher_logprobs"].is_valid().to_pylist()
    return [
        teacher_advantages.per_token(
            theirs[i][where] if said[i] else np.full(len(where), np.nan), logprobs[i][where]
        )
        for i, where in enumerate(positions)
    ]


def _kept(batch: pa.RecordBatch, i: int, distill: Distill | None) -> dict[str, np.ndarray]:
    """A teacher's top-k of one row, [R, K] and the tail [R]."""
    if distill is None or not isinstance(distill.signal, TopK):
        return {}
    ids, logprobs, tail = (
        batch[name][i].values.to_numpy()
        for name in ("teacher_ids", "teacher_id_logprobs", "teacher_tail")
    )
    shape = (len(tail), -1)
    return {
        "teacher_ids": ids.reshape(shape),
        "teacher_id_logprobs": logprobs.reshape(shape),
        "teacher_tail": tail,
    }
