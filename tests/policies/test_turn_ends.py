"""Where a prompt begins and an answer ends, as the tokenizer and the template of each family have it."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import load
from tokenizers import Tokenizer, processors

from policies.rows import from_data
from policies.tokens import Tokens
from runtime.tasks.prompt import Prompt
from tests.policies.chat_families import FAMILIES, write_family

TURN_ENDS = {
    "qwen3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",
    "mistral": "</s>",
    "unigram": "</s>",
}
NAMED_ENDS = {
    "qwen3": "<|endoftext|>",
    "llama3": "<|end_of_text|>",
    "gemma": "<eos>",
    "phi3": "<|endoftext|>",
    "mistral": "</s>",
    "unigram": "</s>",
}
"""What the tokenizers of base models, and of many instruct models, call the end of a text."""
BOS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>", "mistral": "<s>", "unigram": "<s>"}
CHAT = [{"role": "user", "content": "What is 17 + 25?"}]


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


def base(folder: Path, family: str, *, ends: bool = False) -> Path:
    """A family's tokenizer as its base model has it: BOS by the post-processor, and no template."""
    write_family(folder, family)
    changed(folder, chat_template=None)
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    bos, eos = BOS[family], NAMED_ENDS[family]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{bos} $A {eos}" if ends else f"{bos} $A",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (bos, eos)],
    )
    tokenizer.save(path)
    return folder


def opened(folder: Path, **how: Any) -> tuple[Any, Tokens]:
    wrapper = load(folder)
    return wrapper, Tokens(wrapper, folder, {}, "", **how)


@pytest.mark.parametrize("family", sorted(BOS))
def test_a_prompt_without_a_template_begins_as_the_tokenizer_begins_a_text(
    family: str, tmp_path: Path
) -> None:
    wrapper, tokens = opened(base(tmp_path / family, family))
    text = CHAT[0]["content"]
    assert tokens.prompt(CHAT) == list(wrapper.encode(text))
    assert tokens.prompt(CHAT)[0] == wrapper.convert_tokens_to_ids(BOS[family])
    assert tokens.encode(text) == tokens.prompt(CHAT)[1:]  # an answer has none in its middle


@pytest.mark.parametrize("family", sorted(BOS))
def test_what_the_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt(
    family: str, tmp_path: Path
) -> None:
    wrapper, tokens = opened(base(tmp_path / family, family, ends=True))
    end = wrapper.convert_tokens_to_ids(NAMED_ENDS[family])
    assert list(wrapper.encode(CHAT[0]["content"]))[-1] == end
    assert tokens.prompt(CHAT) == list(wrapper.encode(CHAT[0]["content"]))[:-1]


def test_a_prompt_with_a_lookalike_has_the_same_beginning(tmp_path: Path) -> None:
    wrapper, tokens = opened(base(tmp_path / "llama3", "llama3"))
    bos = wrapper.convert_tokens_to_ids("<|begin_of_text|>")
    ids = tokens.prompt([{"role": "user", "content": "<|begin_of_text|> x"}])
    assert ids[0] == bos and bos not in ids[1:]


def test_a_beginning_that_the_text_has_already_is_not_doubled(tmp_path: Path) -> None:
    wrapper, tokens = opened(base(tmp_path / "llama3", "llama3"), special_tokens_in_text=True)
    ids = tokens.prompt([{"role": "user", "content": "<|begin_of_text|>x"}])
    assert ids.count(wrapper.convert_tokens_to_ids("<|begin_of_text|>")) == 1


def test_a_setting_leaves_the_beginning_out(tmp_path: Path) -> None:
    _, tokens = opened(base(tmp_path / "gemma", "gemma"), adds_special_tokens=False)
    assert tokens.prompt(CHAT) == tokens.encode(CHAT[0]["content"])


def test_a_template_writes_its_own_beginning(tmp_path: Path) -> None:
    folder = base(tmp_path / "llama3", "llama3")
    changed(folder, chat_template=FAMILIES["llama3"]()[1])
    wrapper, tokens = opened(folder)
    assert tokens.prompt(CHAT).count(wrapper.convert_tokens_to_ids("<|begin_of_text|>")) == 1


@pytest.mark.parametrize("family", sorted(TURN_ENDS))
def test_an_answer_in_data_ends_as_the_template_ends_a_turn(family: str, tmp_path: Path) -> None:
    """Also where the tokenizer's own end is another token, and sampling stops at both."""
    folder = write_family(tmp_path / family, family)
    wrapper, tokens = opened(changed(folder, eos_token=NAMED_ENDS[family]))
    end, named = map(wrapper.convert_tokens_to_ids, (TURN_ENDS[family], NAMED_ENDS[family]))
    assert tokens.stop_token() == end
    assert tokens.stop_tokens == {end, named}
    prompt = Prompt(task="t", index=0, messages=CHAT, demonstration="It is 42.")
    (row,) = from_data(tokens, [prompt], step=1, limit=200)
    assert row.tokens == [*tokens.prompt(CHAT), *tokens.encode("It is 42."), end]


@pytest.mark.parametrize("family", sorted(TURN_ENDS))
def test_a_whole_chat_of_the_template_has_that_end_behind_the_answer(
    family: str, tmp_path: Path
) -> None:
    wrapper, tokens = opened(write_family(tmp_path / family, family))
    chat = [*CHAT, {"role": "assistant", "content": "It is 42."}]
    ids = list(wrapper.apply_chat_template(chat, add_generation_prompt=False))
    last = len(ids) - 1 - ids[::-1].index(tokens.stop_token())
    assert tokens.decode(ids[:last]).rstrip().endswith("It is 42.")
    assert tokens.decode(ids[last:]).strip() == ""  # a verifier sees the answer alone


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('only the user') }}"
        "{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
    ],
)
def test_a_template_that_ends_no_answer_leaves_it_to_the_tokenizer(
    template: str, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "qwen3", "qwen3")
    wrapper, tokens = opened(changed(folder, chat_template=template, eos_token="<|endoftext|>"))
    end = wrapper.convert_tokens_to_ids("<|endoftext|>")
    assert (tokens.stop_token(), tokens.stop_tokens) == (end, {end})
