"""Bounds how much longer a tokenizer can make a text, by tokenizer.json and before a library runs it.

A normalizer can replace one letter by a million, and eight normalizers in a row can do so with ten letters
each. No tokenizer in common use makes more than three letters of one. The steps are read as plain JSON; a
step's type determines its effect.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import BadInput

MOST_GROWTH = 64
"""Largest number of letters that one letter may become."""
LONGEST_TOKEN = 16_384
"""Largest number of letters of one token, since an answer may repeat the longest token at every position."""
MAX_DEPTH = 8


def check_growth(path: Path, content: dict[str, Any]) -> None:
    """Raises BadInput for a tokenizer that can expand a text, or an answer, without bound."""
    for stage in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1
        for step in _steps(path, content.get(stage), MAX_DEPTH):
            growth *= _growth(step)
            if growth > MOST_GROWTH:
                raise BadInput(
                    f"{path}: its {stage} can make more than {MOST_GROWTH} letters of one, "
                    "which no text needs"
                )
    model = content.get("model")
    vocabulary = model.get("vocab", ()) if isinstance(model, dict) else ()
    tokens = (t[0] if isinstance(t, list) and t else t for t in vocabulary)
    longest = max((len(t) for t in tokens if isinstance(t, str)), default=0)
    if longest > LONGEST_TOKEN:
        raise BadInput(
            f"{path}: needs tokens of at most {LONGEST_TOKEN:,} letters, has {longest:,}"
        )


def _steps(path: Path, stage: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Yields the single steps of a stage, in which sequences may be nested."""
    if not isinstance(stage, dict):
        return
    if depth == 0:
        raise BadInput(f"{path}: nests more than {MAX_DEPTH} sequences of steps")
    inner = [stage.get(key) for key in ("normalizers", "pretokenizers", "decoders")]
    for steps in inner:
        for step in steps if isinstance(steps, list) else ():
            yield from _steps(path, step, depth - 1)
    if not any(isinstance(steps, list) for steps in inner):
        yield stage


def _growth(step: dict[str, Any]) -> int:
    texts = [step.get(key) for key in ("content", "prepend", "replacement")]
    longest = max((len(text) for text in texts if isinstance(text, str)), default=1)
    pattern = step.get("pattern")
    whole = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(whole, str) and whole:
        return -(-longest // len(whole))
    return max(longest, 1)
