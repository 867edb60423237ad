"""An example of a reward for your own task: the answer has to be right, and short."""

from typing import Any


def reward(prompt: str, completion: str, row: dict[str, Any]) -> float:
    """Returns 1 for an answer with the right word, 0.05 less for each word beyond ten, at least 0.5; else 0.

    `row` is the line of the JSONL file with the prompt: add the columns that you need to judge an answer.
    """
    words = completion.lower().replace(".", " ").replace(",", " ").split()
    if str(row["answer"]).lower() not in words:
        return 0.0
    return max(0.5, 1.0 - 0.05 * max(len(words) - 10, 0))
