"""The checkpoint's tokenizer, as far as Pippin uses it: ids in, ids out, nothing encoded twice.

The chat template is rendered in a process of its own (`runtime.template_process`), and what in a text
only looks like a special token is encoded as plain text (`policies.plain_text`). A prompt without a
template begins as the tokenizer begins every text (Llama-3 and Gemma: with BOS). An answer in data ends
as the template ends an assistant's turn, and sampling stops there too.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from policies.plain_text import Lookalikes
from runtime.errors import BadInput
from runtime.template_process import Refused, render

TRIAL = "X"
ANSWER = "Zq7answer"
"""An assistant's message that no template writes by itself."""


class PlainPieces(Struct):
    """How many pieces of text looked like special tokens and were encoded as plain text."""

    count: int = 0
    first: str = ""
    """The first of them, as it was written."""


class Tokens:
    """Wraps what mlx-lm loads; `policies.load.load_tokens` makes it.

    With `special_tokens_in_text`, a text that spells out a special token is that token. Without
    `adds_special_tokens`, a prompt that no template renders is its text alone.
    """

    def __init__(
        self,
        wrapper: Any,
        folder: Path,
        template: dict[str, Any],
        system: str,
        *,
        special_tokens_in_text: bool = False,
        adds_special_tokens: bool = True,
    ) -> None:
        self._wrapper = wrapper
        self._arguments = template
        self._system = system
        self.folder = folder
        self._adds_special_tokens = adds_special_tokens
        self.named_ends = frozenset(int(t) for t in wrapper.eos_token_ids)
        """The end tokens that the checkpoint's files name."""
        self.fingerprint = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        self.plain = PlainPieces()
        self._template = _stranger_template(wrapper)
        backend = getattr(wrapper, "backend_tokenizer", None)
        self._lookalikes: Lookalikes | None = None
        if backend is not None and not special_tokens_in_text:
            self._lookalikes = Lookalikes(backend, self.named_ends, self._turn_tokens)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a chat up to where the assistant begins, by the checkpoint's own template.

        Without a template they are the texts, behind what the tokenizer itself puts before a text.
        Raises BadInput if the template gives no prompt.
        """
        if self._system:
            messages = [{"role": "system", "content": self._system}, *messages]
        if not self.has_template:
            ids = self.encode("\n".join(m["content"] for m in messages))
            before = self._before_text
            return ids if ids[: len(before)] == before else [*before, *ids]
        looks = self._lookalikes
        if (
            self._template is None
            or looks is None
            or not self._noted(m["content"] for m in messages)
        ):
            return self._rendered_ids(messages)
        hidden = [{**m, "content": looks.hide(m["content"])} for m in messages]
        return looks.encode_rendered(self._render(hidden))

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return bool(self._wrapper.has_chat_template)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens."""
        if self._lookalikes is not None and self._noted([text]):
            return self._lookalikes.encode(text)
        return list(self._wrapper.encode(text, add_special_tokens=False))

    def lookalikes(self, text: str) -> list[str]:
        """The pieces of a text that are encoded as plain text though they look like special tokens."""
        return self._lookalikes.found(text) if self._lookalikes is not None else []

    def decode(self, tokens: list[int]) -> str:
        """Text of ids, for a verifier and for people; never encoded again. Special tokens are left out, and
        a turn's end is, whatever the tokenizer calls it.
        """
        kept = [token for token in tokens if token != self._turn_end]
        return self._wrapper.decode(kept, skip_special_tokens=True)

    def stop_token(self) -> int:
        """Returns the token that ends an answer in data: the template's turn end, or else the tokenizer's
        end token.
        """
        if self._turn_end is not None:
            return self._turn_end
        own = self._wrapper.eos_token_id
        return int(own) if own is not None else min(self.named_ends)

    @functools.cached_property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens at which sampling stops: the checkpoint's end tokens and the template's turn end."""
        return self.named_ends if self._turn_end is None else self.named_ends | {self._turn_end}

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Returns each token as its own text, special ones by name, for people."""
        return [self._wrapper.decode([i], skip_special_tokens=False) for i in ids]

    @functools.cached_property
    def _turn_end(self) -> int | None:
        """The first added token that the template writes behind an assistant's message; None without one."""
        if self._template is None:
            return None
        chat = [{"role": "user", "content": TRIAL}, {"role": "assistant", "content": ANSWER}]
        try:
            _, found, after = self._render(chat, open_turn=False).rpartition(ANSWER)
        except BadInput:
            return None
        if not found:
            return None
        added = self._wrapper.backend_tokenizer.get_added_tokens_decoder()
        ids = self._wrapper.encode(after, add_special_tokens=False)
        return next((int(i) for i in ids if i in added and added[i].content.strip()), None)

    @functools.cached_property
    def _before_text(self) -> list[int]:
        """What the tokenizer itself puts before a text, such as BOS; what it puts behind one is left out."""
        if not self._adds_special_tokens:
            return []
        whole = list(self._wrapper.encode(TRIAL, add_special_tokens=True))
        plain = list(self._wrapper.encode(TRIAL, add_special_tokens=False))
        places = range(len(whole) - len(plain) + 1)
        return whole[: next((i for i in places if whole[i : i + len(plain)] == plain), 0)]

    def _rendered_ids(self, messages: list[dict[str, str]]) -> list[int]:
        if self._template is None:
            return list(
                self._wrapper.apply_chat_template(
                    messages, add_generation_prompt=True, **self._arguments
                )
            )
        return list(self._wrapper.encode(self._render(messages), add_special_tokens=False))

    def _render(self, messages: list[dict[str, str]], *, open_turn: bool = True) -> str:
        assert self._template is not None
        thinking = {"enable_thinking": self._wrapper.has_thinking}
        special = {name: _plain(value) for name, value in self._wrapper.special_tokens_map.items()}
        variables = {**special, "add_generation_prompt": open_turn, **thinking, **self._arguments}
        try:
            return render(self._template, messages, variables)
        except Refused as reason:
            raise BadInput(
                f"{self.folder}: its chat template makes no prompt of the messages: it {reason}"
            ) from None

    def _turn_tokens(self) -> list[str]:
        """What the template writes around a message: the ends of a turn, special or not."""
        if self._template is None:
            return []
        try:
            rendered = self._render([{"role": "user", "content": TRIAL}], open_turn=False)
        except BadInput:
            return []
        added = self._wrapper.backend_tokenizer.get_added_tokens_decoder()
        ids = {*self._wrapper.encode(rendered, add_special_tokens=False), self._turn_end}
        return [token.content for i, token in added.items() if i in ids]

    def _noted(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts has a look-alike; they are counted."""
        assert self._lookalikes is not None
        found = [token for text in texts for token in self._lookalikes.found(text)]
        if found:
            self.plain.count += len(found)
            self.plain.first = self.plain.first or found[0]
        return bool(found)


def _stranger_template(wrapper: Any) -> str | None:
    """The checkpoint's template; None if there is none, or if a library renders by code of its own."""
    from transformers import PreTrainedTokenizerBase

    inner = wrapper._tokenizer
    own_code = (
        type(inner).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        or wrapper._chat_template is not None
    )
    return None if own_code or inner.chat_template is None else inner.get_chat_template(None, None)


def _plain(value: Any) -> Any:
    """A special token, or a list of them, as text."""
    return (
        [str(v) for v in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )
