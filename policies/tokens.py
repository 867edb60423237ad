"""The checkpoint's tokenizer, as far as Pippin uses it: ids in, ids out, nothing encoded twice.

The chat template is rendered in a process of its own (`runtime.template_process`), and what in a text
only looks like a special token is encoded as plain text (`policies.plain_text`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from policies.plain_text import Lookalikes
from runtime.errors import BadInput
from runtime.template_process import Refused, render

TRIAL = "X"


class PlainPieces(Struct):
    """How many pieces of text looked like special tokens and were encoded as plain text."""

    count: int = 0
    first: str = ""
    """The first of them, as it was written."""


class Tokens:
    """Wraps what mlx-lm loads; `policies.load.load_tokens` makes it.

    With `special_tokens_in_text`, a text that spells out a special token is that token.
    """

    def __init__(
        self,
        wrapper: Any,
        folder: Path,
        template: dict[str, Any],
        system: str,
        *,
        special_tokens_in_text: bool = False,
    ) -> None:
        self._wrapper = wrapper
        self._arguments = template
        self._system = system
        self.folder = folder
        self.stop_tokens = frozenset(int(t) for t in wrapper.eos_token_ids)
        self.fingerprint = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        self.plain = PlainPieces()
        self._template = _stranger_template(wrapper)
        backend = getattr(wrapper, "backend_tokenizer", None)
        self._lookalikes: Lookalikes | None = None
        if backend is not None and not special_tokens_in_text:
            self._lookalikes = Lookalikes(backend, self.stop_tokens, self._turn_tokens)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a chat up to where the assistant begins, by the checkpoint's own template.

        Raises BadInput if the template gives no prompt.
        """
        if self._system:
            messages = [{"role": "system", "content": self._system}, *messages]
        if not self._wrapper.has_chat_template:
            return self.encode("\n".join(m["content"] for m in messages))
        looks = self._lookalikes
        if (
            self._template is None
            or looks is None
            or not self._noted(m["content"] for m in messages)
        ):
            return self._rendered_ids(messages)
        hidden = [{**m, "content": looks.hide(m["content"])} for m in messages]
        return looks.encode_rendered(self._render(hidden))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens."""
        if self._lookalikes is not None and self._noted([text]):
            return self._lookalikes.encode(text)
        return list(self._wrapper.encode(text, add_special_tokens=False))

    def lookalikes(self, text: str) -> list[str]:
        """The pieces of a text that are encoded as plain text though they look like special tokens."""
        return self._lookalikes.found(text) if self._lookalikes is not None else []

    def decode(self, tokens: list[int]) -> str:
        """Text of ids, for a verifier and for people; never encoded again."""
        return self._wrapper.decode(tokens, skip_special_tokens=True)

    def stop_token(self) -> int:
        """The token that ends an answer in data."""
        own = self._wrapper.eos_token_id
        return int(own) if own is not None else min(self.stop_tokens)

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
        ids = set(self._wrapper.encode(rendered, add_special_tokens=False))
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
