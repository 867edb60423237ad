"""An example of a task of one's own: the answer has to be right, and short."""

from typing import Any


def reward(prompt: str, completion: str, row: dict[str, Any]) -> float:
    """1 for an answer with the right word, 0.05 less for each word beyond ten, but not below 0.5.

    `row` is the line of the JSONL file that the prompt is from: put there what you need to judge.
    """
    words = completion.lower().replace(".", " ").replace(",", " ").split()
    if str(row["answer"]).lower() not in words:
        return 0.0
    return max(0.5, 1.0 - 0.05 * max(len(words) - 10, 0))
