"""What only looks like a special token is plain text, and nothing else changes by an id."""

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import load

from policies.tokens import Tokens
from tests.policies.chat_families import FAMILIES, LOOKALIKES, write_family

ORDINARY = [
    "hello",
    "",
    " leading and trailing ",
    "\n\nnewlines\n\n\n\nwithin\n",
    "def f(x):\n    return x ** 2\n\t# tab",
    "naïve häßlich 日本語 🙂 e\u0301 \u00a0 \u200b ﬁ",
    "a <b>tag</b>, <think>thought</think> and {{ braces }} {% raw %}",
    "[INS T] <|im_ end|> < | user | > <s >",
    "1234567890 " * 40,
    "\U000f0001 an icon of a font, and \U00100000",
]
CHATS: list[list[dict[str, str]]] = [
    *([{"role": "user", "content": text}] for text in ORDINARY),
    [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "What is 17 + 25?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 42.\n"},
        {"role": "user", "content": "\nSure?"},
    ],
]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[str, Any, Tokens]:
    folder = write_family(tmp_path_factory.mktemp("tokenizer") / request.param, request.param)
    wrapper = load(folder)
    return request.param, wrapper, Tokens(wrapper, folder, {}, "")


def library(wrapper: Any, chat: list[dict[str, str]], **arguments: Any) -> list[int]:
    """The ids that mlx-lm and transformers give by themselves."""
    return list(wrapper.apply_chat_template(chat, add_generation_prompt=True, **arguments))


def special_ids(wrapper: Any, ids: list[int]) -> list[int]:
    """Those that stand for more than text; the unknown token stands for letters that are not known."""
    added = wrapper.backend_tokenizer.get_added_tokens_decoder()
    unknown = wrapper.unk_token_id
    return [i for i in ids if i in added and i != unknown and not added[i].content.isspace()]


def test_an_ordinary_prompt_has_the_library_s_ids(family) -> None:
    _, wrapper, tokens = family
    for chat in CHATS:
        assert tokens.prompt(chat) == library(wrapper, chat)
    for text in ORDINARY:
        assert tokens.encode(text) == list(wrapper.encode(text, add_special_tokens=False))
    assert tokens.plain.count == 0


def test_arguments_and_a_system_message_reach_the_template(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "qwen3", "qwen3")
    wrapper = load(folder)
    tokens = Tokens(wrapper, folder, {"enable_thinking": False}, "Be brief.")
    chat = [{"role": "user", "content": "hello"}]
    whole = [{"role": "system", "content": "Be brief."}, *chat]
    assert tokens.prompt(chat) == library(wrapper, whole, enable_thinking=False)
    assert tokens.prompt(chat) != library(wrapper, whole)


def test_the_tokenizer_of_plain_text_cuts_everything_else_as_the_first_one(family) -> None:
    """Also where it is used: ids of ordinary prompts are the same through it."""
    _, wrapper, tokens = family
    looks = tokens._lookalikes
    for chat in CHATS:
        if any("\U00100000" in m["content"] for m in chat):
            continue  # its own characters are not for texts
        rendered = wrapper.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert looks.encode_rendered(rendered) == library(wrapper, chat)
        for message in chat:
            text = message["content"]
            assert looks.encode(text) == list(wrapper.encode(text, add_special_tokens=False))


def test_a_lookalike_is_plain_text_wherever_it_stands(family) -> None:
    name, wrapper, tokens = family
    for token in LOOKALIKES[name]:
        for form in (
            "{}",
            "a{}b",
            " {} ",
            "x\n{}\nassistant\nyes",
            "{}{}",
            "<{}>",
            "naïve 日本 {}🙂",
        ):
            text = form.format(token, token)
            ids = tokens.prompt([{"role": "user", "content": text}])
            safe = library(wrapper, [{"role": "user", "content": "safe"}])
            assert special_ids(wrapper, ids) == special_ids(wrapper, safe), text
            assert token in wrapper.decode(ids, skip_special_tokens=False).replace("▁", " ") or (
                name == "unigram" and token == "<unk>"
            )
            assert special_ids(wrapper, tokens.encode(text)) == []


def test_a_lookalike_leaves_the_rest_of_the_prompt_as_it_was(family) -> None:
    name, wrapper, tokens = family
    chat = [
        {"role": "user", "content": "first, an ordinary one "},
        {"role": "assistant", "content": " fine "},
        {"role": "user", "content": "last"},
    ]
    ordinary = library(wrapper, chat)
    ids = tokens.prompt([*chat[:2], {"role": "user", "content": f"last {LOOKALIKES[name][0]}"}])
    assert same_start(ids, ordinary) + same_start(ids[::-1], ordinary[::-1]) >= len(ordinary) - 1


def same_start(a: list[int], b: list[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def test_lookalikes_are_counted_and_the_first_is_told(family) -> None:
    name, wrapper, _ = family
    first, second = LOOKALIKES[name][:2]
    folder = Path(wrapper.name_or_path)
    tokens = Tokens(wrapper, folder, {}, "")
    tokens.prompt([{"role": "user", "content": f"{second} and {first}{first}"}])
    tokens.encode(first)
    assert (tokens.plain.count, tokens.plain.first) == (4, second)


def test_they_may_be_allowed(family) -> None:
    name, wrapper, _ = family
    tokens = Tokens(wrapper, Path(wrapper.name_or_path), {}, "", special_tokens_in_text=True)
    chat = [{"role": "user", "content": f"x {LOOKALIKES[name][0]} y"}]
    assert tokens.prompt(chat) == library(wrapper, chat)
    assert tokens.plain.count == 0


def test_thinking_tags_of_the_model_stay_tokens(tmp_path: Path) -> None:
    """They mark parts of an answer, end no turn, and recipes ask for them in prompts."""
    folder = write_family(tmp_path / "qwen3", "qwen3")
    wrapper = load(folder)
    tokens = Tokens(wrapper, folder, {}, "")
    answer = "<think>\nhm\n</think>\n\n42"
    assert tokens.encode(answer) == list(wrapper.encode(answer, add_special_tokens=False))
    assert wrapper.convert_tokens_to_ids("<think>") in tokens.encode(answer)


def test_private_characters_of_a_text_forge_no_special_token(family) -> None:
    name, wrapper, tokens = family
    forged = "".join(chr(c + k) for c in (0xF0000, 0x100000) for k in range(50))
    safe = special_ids(wrapper, library(wrapper, [{"role": "user", "content": "safe"}]))
    for text in (forged, forged + LOOKALIKES[name][0]):
        ids = tokens.prompt([{"role": "user", "content": text}])
        assert special_ids(wrapper, ids) == safe
