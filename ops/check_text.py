"""What in a run's data only looks like special tokens: counted, with the first place, for a person to see."""

from typing import Any

from runtime.tasks.prompt import Prompt


class PlainText:
    """Sees the prompts that a launch checks; `tokens` are the model's."""

    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens
        self._pieces = self._rows = 0
        self._first = ""

    def see(self, prompt: Prompt) -> None:
        """Count what in its messages and its answer is read as plain text."""
        texts = [message["content"] for message in prompt.messages]
        found = [
            token
            for text in [*texts, prompt.demonstration or ""]
            for token in self._tokens.lookalikes(text)
        ]
        if found:
            self._rows += 1
            self._pieces += len(found)
            self._first = self._first or f"{found[0]} in {prompt.place}"

    def doubts(self) -> list[str]:
        """A sentence if there was any."""
        if not self._pieces:
            return []
        pieces = "1 piece" if self._pieces == 1 else f"{self._pieces:,} pieces"
        rows = "1 row" if self._rows == 1 else f"{self._rows:,} rows"
        return [
            f"{pieces} of text in {rows} of the data look like special tokens and are read as plain text, "
            f"the first is {self._first}; model.special_tokens_in_text = true lets them be special"
        ]
