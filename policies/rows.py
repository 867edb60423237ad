"""Prompts and data as tokens, and finished sequences as trajectories."""

import math
from collections.abc import Sequence as Items

import pyarrow as pa
from msgspec.structs import replace

from policies.decode import Sequence
from policies.tokens import Tokens
from runtime.errors import BadInput
from runtime.tasks.prompt import Prompt
from runtime.trajectory import StopReason, Trajectory, lists


def encode(tokens: Tokens, prompt: Prompt, limit: int) -> tuple[int, ...]:
    """A prompt's ids. Raises BadInput if it is empty or longer than `limit`."""
    ids = tuple(tokens.prompt(prompt.messages))
    if not ids:
        raise BadInput(f"{prompt.place}: needs a prompt of at least one token, got none")
    if len(ids) > limit:
        raise BadInput(
            f"{prompt.place}: the prompt has {len(ids)} tokens, but the model's context less "
            f"sampling.max_new_tokens leaves {limit}"
        )
    return ids


def from_sequence(
    tokens: Tokens,
    prompt: Prompt,
    sequence: Sequence,
    *,
    step: int,
    sample: int,
    temperature: float,
) -> Trajectory:
    """The record of a sampled sequence."""
    before, sampled = len(sequence.prompt), len(sequence.tokens)
    assert sequence.stop_reason is not None
    return Trajectory(
        step=step,
        task=prompt.task,
        prompt_index=prompt.index,
        sample=sample,
        key=sequence.key,
        tokens=[*sequence.prompt, *sequence.tokens],
        sampled=[False] * before + [True] * sampled,
        logprobs=[0.0] * before + sequence.logprobs,
        weights_version=[-1] * before + sequence.versions,
        prompt_tokens=before,
        temperature=temperature,
        stop_reason=sequence.stop_reason,
        text=tokens.decode(sequence.tokens),
        teacher=prompt.teacher or None,
        seconds=sequence.seconds,
    )


def to_sequences(batch: pa.RecordBatch) -> dict[tuple[int, int], Sequence]:
    """Sequences that were sampled before, to go on from, by prompt index and sample."""
    prompt_tokens = batch["prompt_tokens"].to_pylist()
    columns = {name: lists(batch, name) for name in ("tokens", "logprobs", "weights_version")}
    found = {}
    for i, where in enumerate(
        zip(batch["prompt_index"].to_pylist(), batch["sample"].to_pylist(), strict=True)
    ):
        tokens, logprobs, versions = (columns[name][i].tolist() for name in columns)
        before = prompt_tokens[i]
        found[where] = Sequence(
            prompt=tuple(tokens[:before]),
            key=batch["key"][i].as_py(),
            tokens=tokens[before:],
            logprobs=logprobs[before:],
            versions=versions[before:],
            stop_reason=StopReason(batch["stop_reason"][i].as_py()),
            seconds=batch["seconds"][i].as_py(),
        )
    return found


def from_data(tokens: Tokens, prompts: Items[Prompt], *, step: int, limit: int) -> list[Trajectory]:
    """Returns rows to imitate: prompt, answer, stop token. Rows over `limit` tokens are marked."""
    return [
        _of_data(tokens, prompt, prompt.demonstration or "", 0, step=step, limit=limit)
        for prompt in prompts
    ]


def from_preferences(
    tokens: Tokens, prompts: Items[Prompt], *, step: int, limit: int, paired: bool
) -> list[Trajectory]:
    """Returns rows to compare: of each prompt the preferred answer (sample 0) and the rejected one (1).

    If they are not `paired`, each answer is judged alone, and every prompt gets a row with the answer of
    the next one (sample 2, no label): by those, KTO estimates how far the policy has moved in general.
    Raises BadInput for a prompt without answers to compare.
    """
    rows = []
    for number, prompt in enumerate(prompts):
        answers = _judged_answers(prompt)
        for sample, (text, label) in enumerate(answers):
            row = _of_data(tokens, prompt, text, sample, step=step, limit=limit)
            rows.append(replace(row, pair=prompt.index if paired else None, preference=label))
        if not paired and len(prompts) > 1:
            other = prompts[(number + 1) % len(prompts)].demonstration or ""
            row = _of_data(tokens, prompt, other, MISMATCHED, step=step, limit=limit)
            rows.append(replace(row, preference=0))
    return rows


MISMATCHED = 2
"""Sample number of a row that has another prompt's answer."""


def _judged_answers(prompt: Prompt) -> list[tuple[str, int]]:
    """Returns a prompt's answers, each with 1 if it is preferred or desirable and -1 if not."""
    if prompt.demonstration is not None and prompt.desirable is not None:
        return [(prompt.demonstration, 1 if prompt.desirable else -1)]
    if prompt.demonstration is None or prompt.rejected is None:
        raise BadInput(f"{prompt.place}: needed a preferred and a rejected answer, got none")
    return [(prompt.demonstration, 1), (prompt.rejected, -1)]


def _of_data(
    tokens: Tokens, prompt: Prompt, text: str, sample: int, *, step: int, limit: int
) -> Trajectory:
    before = tokens.prompt(prompt.messages)
    ids = [*before, *tokens.encode(text), tokens.stop_token()]
    return Trajectory(
        step=step,
        task=prompt.task,
        prompt_index=prompt.index,
        sample=sample,
        key=0,
        tokens=ids,
        sampled=[False] * len(ids),
        logprobs=[0.0] * len(ids),
        weights_version=[-1] * len(ids),
        prompt_tokens=len(before),
        temperature=1.0,
        stop_reason=StopReason.DATA,
        text=text,
        teacher=prompt.teacher or None,
        dropped="too_long" if len(ids) > limit else None,
    )


def from_answer(
    tokens: Tokens,
    prompt: Prompt,
    text: str,
    *,
    step: int,
    author: str,
    limit: int,
    ended: bool,
    failure: str | None = None,
) -> Trajectory:
    """The record of a teacher's text, in the tokens of who learns from it; `ended` adds the stop token.

    One that failed is the prompt alone. What cannot be learned from is marked, never left out.
    """
    before = tokens.prompt(prompt.messages)
    answer = [] if failure else tokens.encode(text)
    ids = [*before, *answer, *([tokens.stop_token()] if ended and answer else [])]
    dropped = failure or ("teacher_empty" if not text.strip() or not answer else None)
    kept = before if dropped else ids[: limit + 1]
    return Trajectory(
        step=step,
        task=prompt.task,
        prompt_index=prompt.index,
        sample=0,
        key=0,
        tokens=kept,
        sampled=[False] * len(kept),
        logprobs=[0.0] * len(kept),
        weights_version=[-1] * len(kept),
        prompt_tokens=len(before),
        temperature=1.0,
        stop_reason=StopReason.DATA,
        text="" if dropped else text,
        author=author,
        teacher=author,
        dropped=dropped or ("too_long" if len(ids) > limit else None),
    )


def by_teacher(row: Trajectory, author: str, prompt: tuple[int, ...], limit: int) -> Trajectory:
    """A teacher's own sequence as the answer to `prompt`, the ids that the learner's template gives."""
    answer = row.tokens[row.prompt_tokens :]
    before, after = len(prompt), len(answer)
    logprobs = row.logprobs[row.prompt_tokens :]
    reason = None
    if not row.text.strip() and row.stop_reason is StopReason.STOP:
        reason = "teacher_empty"
    elif not all(map(math.isfinite, logprobs)):
        reason = "teacher_unusable"
    elif before + after > limit:
        reason = "too_long"
    return replace(
        row,
        tokens=[*prompt, *answer],
        sampled=[False] * before + [True] * after,
        logprobs=[0.0] * before + logprobs,
        weights_version=[-1] * (before + after),
        prompt_tokens=before,
        author=author,
        teacher=author,
        dropped=reason,
    )
