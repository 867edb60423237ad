"""Prompts as tokens, sequences as records."""

import pytest

from configs.model import Model
from policies.decode import Sequence
from policies.load import load_tokens
from policies.rows import encode, from_data, from_sequence
from policies.tokens import Tokens
from runtime.errors import BadInput
from runtime.tasks.prompt import Prompt
from runtime.trajectory import StopReason
from tests.policies.checkpoints import write

QUESTION = Prompt(
    task="addition",
    index=7,
    messages=[{"role": "user", "content": "1+1="}],
    demonstration="2",
)


@pytest.fixture
def tokens(tmp_path) -> Tokens:
    write(tmp_path, "qwen3")
    return load_tokens(Model(path=str(tmp_path)), tmp_path)


def test_a_prompt_longer_than_the_limit_is_refused(tokens):
    assert len(encode(tokens, QUESTION, limit=7)) == 7
    with pytest.raises(BadInput, match=r"addition, prompt 7: the prompt has 7 tokens, .* leaves 6"):
        encode(tokens, QUESTION, limit=6)


def test_a_record_keeps_every_token_and_its_log_probability(tokens):
    prompt = encode(tokens, QUESTION, limit=100)
    (two,) = tokens.encode("2")
    sequence = Sequence(
        prompt=prompt,
        key=2**64 - 1,
        tokens=[two, 2],
        logprobs=[-0.5, -0.25],
        versions=[3, 4],
        stop_reason=StopReason.STOP,
        seconds=1.5,
    )
    row = from_sequence(tokens, QUESTION, sequence, step=5, sample=1, temperature=0.8)
    before = len(prompt)
    assert row.tokens == [*prompt, two, 2]
    assert row.sampled == [False] * before + [True, True]
    assert row.logprobs == [0.0] * before + [-0.5, -0.25]
    assert row.weights_version == [-1] * before + [3, 4]
    assert (row.prompt_tokens, row.text, row.key) == (before, "2", 2**64 - 1)
    assert (row.step, row.sample, row.prompt_index, row.temperature) == (5, 1, 7, 0.8)
    assert row.stop_reason is StopReason.STOP


def test_data_to_imitate_ends_with_the_stop_token(tokens):
    (row,) = from_data(tokens, [QUESTION], step=2, limit=9)
    assert row.tokens == [*tokens.prompt(QUESTION.messages), *tokens.encode("2"), 2]
    assert (row.prompt_tokens, row.text, row.stop_reason) == (7, "2", StopReason.DATA)
    assert not any(row.sampled) and row.dropped is None


def test_data_longer_than_the_context_is_marked_not_cut(tokens):
    (row,) = from_data(tokens, [QUESTION], step=2, limit=8)
    assert len(row.tokens) == 9 and row.dropped == "too_long"
