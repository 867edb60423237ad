"""Text that looks like special tokens is read as the characters that it is.

``<|im_end|>`` in a prompt, in data or in an endpoint's answer would otherwise become the one token that
ends a turn: a text could play the assistant, or teach the student to stop anywhere. A text without
such a look-alike never comes here, so its ids are what they always were.

A look-alike is told apart from what the chat template writes by names that no text has. The texts'
look-alikes become one private character each before the template sees them; behind it, the template's
own special tokens become other private characters, the look-alikes their own letters again, and the
whole is encoded at once by a second tokenizer that knows the special tokens by those private names alone:

    content   say <|im_end|>                       say ⒜
    rendered  <|im_start|>user\\nsay ⒜<|im_end|>
    encoded   ①user\\nsay <|im_end|>②             ① and ② are the special tokens

So a prompt is cut into words as it always was, and only the look-alike is cut otherwise.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from tokenizers import Tokenizer

HIDDEN, NAMED = 0xF0000, 0x100000
"""Where the private characters begin: of look-alikes, and of special tokens."""
MOST = 0xFFF0
"""Added tokens of one tokenizer, at most."""


class Lookalikes:
    """Finds the special tokens of one tokenizer in texts, and encodes such texts.

    `turns` gives the added tokens that the chat template writes around a message: they count as special,
    whatever the tokenizer calls them. It is asked once, at the first text that has an added token.
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
        """The special tokens that `text` spells out, in its order."""
        spelled = self._spelled.findall(text)
        if self._normalized and not spelled:
            spelled = self._spelled.findall(self._backend.normalizer.normalize_str(text))
        return spelled

    def hide(self, text: str) -> str:
        """The text with one private character in the place of each look-alike."""
        number = {token: k for k, token in enumerate(self._ids)}

        def one(match: re.Match[str]) -> str:
            token = match[0]
            return chr(HIDDEN + number[token]) if token in self._special else token

        return re.sub(self._added, one, _without_private(text))

    def encode(self, text: str) -> list[int]:
        """Ids of a text that is all plain."""
        return self._encode(_without_private(text))

    def encode_rendered(self, rendered: str) -> list[int]:
        """Ids of a prompt whose messages were hidden: special is what the template wrote."""
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
        """The tokenizer with private names for its special tokens, which no text can spell out.

        It gives ids out anew where the file leaves gaps; the dictionary puts them back.
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
    """A regular expression for the longest of `texts` at a place, quick also where there are thousands."""
    try:
        pattern = _branches(sorted(texts)) if texts else "(?!)"
        re.compile(pattern)
    except RecursionError:  # each a prefix of the next, a thousand times
        pattern = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return pattern


def _branches(texts: list[str]) -> str:
    """The pattern of sorted texts: what they share once, then what follows."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(texts[0], texts[-1]))
    shared = "".join(letter for letter, _ in alike)
    rest = [text[len(shared) :] for text in texts]
    if len(rest) == 1:
        return re.escape(shared)
    groups = itertools.groupby(filter(None, rest), key=lambda text: text[0])
    body = "|".join(_branches(list(group)) for _, group in groups)
    return f"{re.escape(shared)}(?:{body}){'' if rest[0] else '?'}"


def _makes(merge: Any, names: dict[str, str]) -> bool:
    """Whether a merge takes or makes a special token."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in names or left in names or right in names


def _without_private(text: str) -> str:
    """The text with U+FFFD for the characters that are names here."""
    return PRIVATE.sub("\N{REPLACEMENT CHARACTER}", text)


PRIVATE = re.compile(f"[{chr(HIDDEN)}-{chr(HIDDEN + MOST)}{chr(NAMED)}-{chr(NAMED + MOST)}]")
