"""The checkpoint's tokenizer, as far as Pippin uses it: ids in, ids out, nothing encoded twice."""

import hashlib
from pathlib import Path
from typing import Any


class Tokens:
    """Wraps what mlx-lm loads; `policies.load.load_tokens` makes it."""

    def __init__(self, wrapper: Any, folder: Path, template: dict[str, Any], system: str) -> None:
        self._wrapper = wrapper
        self._template = template
        self._system = system
        self.folder = folder
        self.stop_tokens = frozenset(int(t) for t in wrapper.eos_token_ids)
        self.fingerprint = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a chat up to where the assistant begins, by the checkpoint's own template."""
        if self._system:
            messages = [{"role": "system", "content": self._system}, *messages]
        if not self._wrapper.has_chat_template:
            return self.encode("\n".join(m["content"] for m in messages))
        return list(
            self._wrapper.apply_chat_template(
                messages, add_generation_prompt=True, **self._template
            )
        )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens."""
        return list(self._wrapper.encode(text, add_special_tokens=False))

    def decode(self, tokens: list[int]) -> str:
        """Text of ids, for a verifier and for people; never encoded again."""
        return self._wrapper.decode(tokens, skip_special_tokens=True)

    def stop_token(self) -> int:
        """The token that ends an answer in data."""
        own = self._wrapper.eos_token_id
        return int(own) if own is not None else min(self.stop_tokens)
