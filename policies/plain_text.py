"""Encodes text that looks like special tokens as plain characters.

``<|im_end|>`` in a prompt, in data or in an endpoint's answer would otherwise become the one token that
ends a turn: a text could pose as the assistant, or train the student to stop anywhere. A text without such a
look-alike is encoded by the ordinary tokenizer.

Private characters, which no text contains, separate look-alikes from the special tokens of the chat template.
Before the template runs, each look-alike in the texts becomes one private character. After it, the template's
own special tokens become other private characters, and the look-alikes get their letters back. Then a second
tokenizer, which knows special tokens by their private characters only, encodes the whole at once:

    content   say <|im_end|>                       say ⒜
    rendered  <|im_start|>user\\nsay ⒜<|im_end|>
    encoded   ①user\\nsay <|im_end|>②             ① and ② are the special tokens

So only the look-alike is split into other tokens, and the rest of the prompt as usual.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from tokenizers import Tokenizer

HIDDEN, NAMED = 0xF0000, 0x100000
"""The first private character of look-alikes, and that of special tokens."""
MOST = 0xFFF0
"""Largest number of added tokens of one tokenizer."""


class Lookalikes:
    """Finds the special tokens of one tokenizer in texts, and encodes such texts.

    `turns` returns the added tokens that the chat template writes around a message; they count as special
    even if the tokenizer does not mark them. It is called once, at the first text with an added token.
    """

    def __init__(
        self, backend: Tokenizer, stop: Collection[int], turns: Callable[[], Collection[str]]
    ) -> None:
        added = backend.get_added_tokens_decoder().items()
        named = [(i, t) for i, t in added if t.content and not t.content.isspace()][:MOST]
        self._backend = backend
        self._ids = {token.content: i for i, token in named}
        self._marked = {token.content for i, token in named if token.special or i in stop}
        self._turns = turns
        self._normalized = backend.normalizer is not None and any(t.normalized for _, t in named)

    @functools.cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(self._marked | (self._ids.keys() & set(self._turns())))

    @functools.cached_property
    def _spelled(self) -> re.Pattern[str]:
        return re.compile(one_of(self._special))

    @functools.cached_property
    def _added(self) -> str:
        return one_of(self._ids)

    def found(self, text: str) -> list[str]:
        """Returns the special tokens that `text` spells out, in their order in the text."""
        spelled = self._spelled.findall(text)
        if self._normalized and not spelled:
            spelled = self._spelled.findall(self._backend.normalizer.normalize_str(text))
        return spelled

    def hide(self, text: str) -> str:
        """Returns the text with one private character in the place of each look-alike."""
        number = {token: k for k, token in enumerate(self._ids)}

        def one(match: re.Match[str]) -> str:
            token = match[0]
            return chr(HIDDEN + number[token]) if token in self._special else token

        return re.sub(self._added, one, _without_private(text))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text that is plain throughout."""
        return self._encode(_without_private(text))

    def encode_rendered(self, rendered: str) -> list[int]:
        """Returns the ids of a prompt whose messages went through `hide`; only the template's are special."""
        tokens = list(self._ids)
        number = {token: k for k, token in enumerate(tokens)}
        hidden = f"[{chr(HIDDEN)}-{chr(HIDDEN + MOST)}]"

        def one(match: re.Match[str]) -> str:
            token = match[0]
            if token in self._special:
                return chr(NAMED + number[token])
            place = ord(token) - HIDDEN if len(token) == 1 else -1
            return tokens[place] if 0 <= place < len(tokens) else token

        return self._encode(re.sub(f"{self._added}|{hidden}", one, rendered))

    def _encode(self, text: str) -> list[int]:
        tokenizer, back = self._plain
        return [back.get(i, i) for i in tokenizer.encode(text, add_special_tokens=False).ids]

    @functools.cached_property
    def _plain(self) -> tuple[Tokenizer, dict[int, int]]:
        """Returns a tokenizer with private characters as special tokens, and a map of its ids to the file's.

        The map is needed because the tokenizer numbers tokens anew where the file has gaps in its ids.
        """
        names = {t: chr(NAMED + k) for k, t in enumerate(self._ids) if t in self._special}
        whole: dict[str, Any] = json.loads(self._backend.to_str())
        for token in whole["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = whole["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(t, t): i for t, i in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(t, t), *rest] for t, *rest in model["vocab"]]
        if "merges" in model:
            model["merges"] = [m for m in model["merges"] if not _makes(m, names)]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        whole |= {"post_processor": None, "truncation": None, "padding": None}
        tokenizer = Tokenizer.from_str(json.dumps(whole))
        vocabulary = tokenizer.get_vocab()
        return tokenizer, {vocabulary[names.get(t, t)]: i for t, i in self._ids.items()}


def one_of(texts: Collection[str]) -> str:
    """Returns a regular expression for the longest of `texts` at a place, fast even for thousands of them."""
    try:
        pattern = _branches(sorted(texts)) if texts else "(?!)"
        re.compile(pattern)
    except RecursionError:  # a thousand texts, each a prefix of the next
        pattern = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return pattern


def _branches(texts: list[str]) -> str:
    """Returns the pattern of sorted texts: their common prefix once, then the alternatives."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(texts[0], texts[-1]))
    shared = "".join(letter for letter, _ in alike)
    rest = [text[len(shared) :] for text in texts]
    if len(rest) == 1:
        return re.escape(shared)
    groups = itertools.groupby(filter(None, rest), key=lambda text: text[0])
    body = "|".join(_branches(list(group)) for _, group in groups)
    return f"{re.escape(shared)}(?:{body}){'' if rest[0] else '?'}"


def _makes(merge: Any, names: dict[str, str]) -> bool:
    """Returns whether a merge takes or makes a special token."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in names or left in names or right in names


def _without_private(text: str) -> str:
    """Returns the text with U+FFFD in place of the private characters."""
    return PRIVATE.sub("\N{REPLACEMENT CHARACTER}", text)


PRIVATE = re.compile(f"[{chr(HIDDEN)}-{chr(HIDDEN + MOST)}{chr(NAMED)}-{chr(NAMED + MOST)}]")
