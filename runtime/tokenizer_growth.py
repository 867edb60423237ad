"""How much longer a tokenizer may make a text, told from tokenizer.json before a library runs it.

A normalizer can put a million letters in the place of one, and eight of them in a row can do so from ten
letters each. None of the tokenizers that people use makes more than three letters of one. The steps are
read as plain JSON: what a step does is known by its type.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import BadInput

MOST_GROWTH = 64
"""Letters that may come of one."""
LONGEST_TOKEN = 16_384
"""Letters of one token: a repeated one makes an answer of as many times as many letters."""
MAX_DEPTH = 8


def check_growth(path: Path, content: dict[str, Any]) -> None:
    """Raises BadInput for a tokenizer that can expand a text, or an answer, without bound."""
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1
        for step in _steps(path, content.get(part), MAX_DEPTH):
            growth *= _growth(step)
            if growth > MOST_GROWTH:
                raise BadInput(
                    f"{path}: its {part} can make more than {MOST_GROWTH} letters of one, which no text needs"
                )
    model = content.get("model")
    vocabulary = model.get("vocab", ()) if isinstance(model, dict) else ()
    tokens = (t[0] if isinstance(t, list) and t else t for t in vocabulary)
    longest = max((len(t) for t in tokens if isinstance(t, str)), default=0)
    if longest > LONGEST_TOKEN:
        raise BadInput(
            f"{path}: needs tokens of at most {LONGEST_TOKEN:,} letters, has {longest:,}"
        )


def _steps(path: Path, part: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The single steps of a part, which sequences nest."""
    if not isinstance(part, dict):
        return
    if depth == 0:
        raise BadInput(f"{path}: nests more than {MAX_DEPTH} sequences of steps")
    inner = [part.get(key) for key in ("normalizers", "pretokenizers", "decoders")]
    for steps in inner:
        for step in steps if isinstance(steps, list) else ():
            yield from _steps(path, step, depth - 1)
    if not any(isinstance(steps, list) for steps in inner):
        yield part


def _growth(step: dict[str, Any]) -> int:
    texts = [step.get(key) for key in ("content", "prepend", "replacement")]
    longest = max((len(text) for text in texts if isinstance(text, str)), default=1)
    pattern = step.get("pattern")
    whole = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(whole, str) and whole:
        return -(-longest // len(whole))
    return max(longest, 1)
