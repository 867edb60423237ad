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
        added = backend.get_added_tokens_decoder()
        named = {i: t for i, t in added.items() if t.content and not t.content.isspace()}
        self._ids = {token.content: i for i, token in list(named.items())[:MOST]}
        self._special = {
            token.content
            for i, token in named.items()
            if token.content in self._ids and (token.special or i in stop)
        }
        self._turns: Callable[[], Collection[str]] | None = turns
        self._backend = backend
        self._plain: Tokenizer | None = None
        self._normalized = backend.normalizer is not None and any(
            token.normalized for token in named.values()
        )
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def found(self, text: str) -> list[str]:
        """The special tokens that `text` spells out, in its order."""
        added = self._any.findall(text)
        if self._normalized:
            added = added or self._any.findall(self._backend.normalizer.normalize_str(text))
        if not added:
            return []
        special = self._all_special()
        return [token for token in added if token in special]

    def hide(self, text: str) -> str:
        """The text with one private character in the place of each look-alike."""
        number = {token: k for k, token in enumerate(self._ids)}
        special = self._all_special()

        def one(match: re.Match[str]) -> str:
            token = match[0]
            return chr(HIDDEN + number[token]) if token in special else token

        return self._any.sub(one, _without_private(text))

    def encode(self, text: str) -> list[int]:
        """Ids of a text that is all plain."""
        return self._encode(_without_private(text))

    def encode_rendered(self, rendered: str) -> list[int]:
        """Ids of a prompt whose messages were hidden: special is what the template wrote."""
        tokens = list(self._ids)
        number = {token: k for k, token in enumerate(tokens)}
        special = self._all_special()
        hidden = f"[{chr(HIDDEN)}-{chr(HIDDEN + MOST)}]"

        def one(match: re.Match[str]) -> str:
            token = match[0]
            if token in special:
                return chr(NAMED + number[token])
            place = ord(token) - HIDDEN if len(token) == 1 else -1
            return tokens[place] if 0 <= place < len(tokens) else token

        return self._encode(re.sub(f"{self._any.pattern}|{hidden}", one, rendered))

    def _all_special(self) -> set[str]:
        if self._turns is not None:
            turns, self._turns = self._turns, None
            self._special |= {token for token in turns() if token in self._ids}
        return self._special

    def _encode(self, text: str) -> list[int]:
        if self._plain is None:
            self._plain = self._renamed()
            names = {token: chr(NAMED + k) for k, token in enumerate(self._ids)}
            special = self._all_special()
            # Ids are given out anew where the file leaves gaps: they are put back.
            self._back = {
                self._plain.token_to_id(names[token] if token in special else token): i
                for token, i in self._ids.items()
            }
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return [self._back.get(i, i) for i in ids]

    def _renamed(self) -> Tokenizer:
        """The tokenizer with private names for its special tokens, which no text can spell out."""
        whole: dict[str, Any] = json.loads(self._backend.to_str())
        special = self._all_special()
        names = {t: chr(NAMED + k) for k, t in enumerate(self._ids) if t in special}
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
        return Tokenizer.from_str(json.dumps(whole))


def _makes(merge: Any, names: dict[str, str]) -> bool:
    """Whether a merge takes or makes a special token."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in names or left in names or right in names


def _without_private(text: str) -> str:
    """The text with U+FFFD for the characters that are names here."""
    return PRIVATE.sub("\N{REPLACEMENT CHARACTER}", text)


PRIVATE = re.compile(f"[{chr(HIDDEN)}-{chr(HIDDEN + MOST)}{chr(NAMED)}-{chr(NAMED + MOST)}]")
