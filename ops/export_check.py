"""Compares what an export wrote with the trained policy, on held-out prompts of the run's task.

The trained policy answers greedily before it is fused; what was written is loaded from its files, answers the
same prompts, and says how likely it finds the trained policy's answers. So a rounding that loses what was
learned is a number in front of a person, not a surprise later.
"""

from collections.abc import Sequence as Items

import mlx.core as mx
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from configs.schema import Settings
from configs.tasks import Jsonl
from policies.decode import Decoder, Sampling, Sequence
from policies.policy import Policy
from policies.rows import encode
from runtime.errors import BadInput
from runtime.tasks.open import open_task

PROMPTS = 4
NEW_TOKENS = 32


class Answer(Struct, frozen=True):
    """A greedy answer to a prompt, and the distribution [T, V] from which each of its tokens was taken."""

    prompt: tuple[int, ...]
    tokens: list[int]
    logprobs_TV: np.ndarray


def held_out(settings: Settings, policy: Policy) -> list[tuple[int, ...]]:
    """Returns a few held-out prompts as tokens. Raises BadInput if the task's data cannot be read.

    The user's reward function is not started.
    """
    task = settings.task
    task = open_task(replace(task, reward="") if isinstance(task, Jsonl) else task, settings.seed)
    try:
        size = task.size("eval")
        count = PROMPTS if size is None else min(PROMPTS, size)
        prompts = [task.prompt("eval", index) for index in range(count)]
    finally:
        task.close()
    limit = policy.context_length - NEW_TOKENS
    return [encode(policy.tokenizer, prompt, limit) for prompt in prompts]


def answers(policy: Policy, prompts: Items[tuple[int, ...]]) -> list[Answer]:
    """Returns the policy's greedy answers to prompts."""
    sequences = [Sequence(prompt=prompt, key=i) for i, prompt in enumerate(prompts)]
    Decoder(policy, slots=PROMPTS).run(
        sequences, Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS)
    )
    return [Answer(s.prompt, s.tokens, _logprobs(policy, s.prompt, s.tokens)) for s in sequences]


def difference(trained: Items[Answer], written: Policy) -> str:
    """Returns a sentence on how far the written policy's answers are from the trained policy's."""
    theirs = answers(written, [answer.prompt for answer in trained])
    total = sum(len(answer.tokens) for answer in trained)
    same = sum(_same_start(a.tokens, b.tokens) for a, b in zip(trained, theirs))
    kl = np.concatenate([
        _kl(a.logprobs_TV, _logprobs(written, a.prompt, a.tokens)) for a in trained
    ]).mean()  # fmt: skip
    kl = max(float(kl), 0.0)  # rounding takes a sum of zeros below
    equal = (
        f"all {total} greedy tokens are the trained policy's"
        if same == total and all(len(a.tokens) == len(b.tokens) for a, b in zip(trained, theirs))
        else f"{same} of {total} greedy tokens are the trained policy's, up to the first other one"
    )
    return (
        f"checked on {len(trained)} held-out prompts: {equal}; "
        f"KL(trained ‖ exported) is {kl:.2g} nats a token"
    )


def _logprobs(policy: Policy, prompt: tuple[int, ...], tokens: list[int]) -> np.ndarray:
    hidden = policy.hidden(mx.array([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
    logits = policy.project(hidden).astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _kl(p_TV: np.ndarray, q_TV: np.ndarray) -> np.ndarray:
    """Returns KL(p ‖ q) of each token [T]; a logit of −∞ in p adds nothing."""
    chance_TV = np.exp(p_TV)
    return np.where(chance_TV > 0, chance_TV * (p_TV - q_TV), 0.0).sum(axis=-1)


def _same_start(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def trained_answers(settings: Settings, policy: Policy) -> tuple[list[Answer], str]:
    """Returns the trained policy's answers, or none and why there are none."""
    try:
        return answers(policy, held_out(settings, policy)), ""
    except BadInput as error:
        return [], f"not checked on held-out prompts: {error}"
