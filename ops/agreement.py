"""Measures how far the sampler's log-probabilities are from the learner's, on one policy, outside a run."""

from collections.abc import Sequence as Items
from pathlib import Path

from msgspec import Struct

from configs.load import NOT_FOLDERS
from configs.model import Model
from configs.run import Mismatch
from policies.decode import Decoder, Sampling, Sequence
from policies.load import load_frozen, locate
from policies.policy import Policy
from runtime.errors import BadInput
from runtime.keys import derive

TOGETHER, ALONE = 32, 8
"""Sequences that are decoded at once, and how many of them again by themselves."""
NEW_TOKENS = 24
QUESTION = "What is 17 + 25? Explain each step."


class Agreement(Struct, frozen=True):
    """Holds the absolute differences at the sampled tokens, in nats."""

    mean_nats: float
    largest_nats: float
    tokens: int


def sample(policy: Policy, question: str) -> tuple[list[Sequence], list[Sequence]]:
    """Returns answers that were sampled together, and the first of them sampled alone."""
    prompt = tuple(policy.tokenizer.prompt([{"role": "user", "content": question}]))
    decoder, sampling = Decoder(policy, slots=TOGETHER), Sampling(max_new_tokens=NEW_TOKENS)
    together = [Sequence(prompt=prompt, key=derive("doctor", i)) for i in range(TOGETHER)]
    decoder.run(together, sampling)
    alone = [Sequence(prompt=prompt, key=derive("doctor", i)) for i in range(ALONE)]
    for sequence in alone:
        decoder.run([sequence], sampling)
    return together, alone


def agreement(policy: Policy, sequences: Items[Sequence]) -> Agreement:
    """Compares the log-probabilities that were kept with the learner's."""
    import mlx.core as mx
    import numpy as np

    from kernels.logprobs import score

    gaps: list[np.ndarray] = []
    for sequence in sequences:
        ids = [*sequence.prompt, *sequence.tokens]
        hidden = policy.hidden(mx.array([ids]))[0, len(sequence.prompt) - 1 : -1]
        learned = score(hidden, policy.project, mx.array(sequence.tokens), temperature=1.0)
        gaps.append(np.abs(np.array(learned) - np.array(sequence.logprobs)))
    all_gaps = np.concatenate(gaps)
    return Agreement(float(all_gaps.mean()), float(all_gaps.max()), all_gaps.size)


def judged_model(path: str) -> tuple[str, str]:
    """Returns what `pippin doctor MODEL` says of a checkpoint in its own dtype: "ok", "note" or "bad", and a
    sentence. Raises BadInput for one that cannot be used.
    """
    policy = load_frozen(Model(path=path), _folder(path))
    found = agreement(policy, sample(policy, QUESTION)[0])
    limits = Mismatch()
    sentence = (
        f"{path}: sampler and learner are {found.mean_nats:.1e} nats apart on average, "
        f"{found.largest_nats:.1e} at most, on {found.tokens} tokens"
    )
    if found.mean_nats < limits.warn_nats:
        return "ok", sentence
    state = "note" if found.mean_nats < limits.fail_nats else "bad"
    what = "a run would warn" if state == "note" else "a run would fail"
    return state, f'{sentence}: {what}; try model.dtype = "float32"'


def _folder(path: str) -> Path:
    if path not in NOT_FOLDERS:
        return locate(path)
    from ops.seed import seedling_folder

    folder = seedling_folder(name=path)
    if not folder.is_dir():
        raise BadInput(f"{path}: is not made yet; try: pippin seed")
    return folder
