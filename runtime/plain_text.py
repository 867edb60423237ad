"""Foreign text as characters that a terminal only shows: the filter for whatever came from outside.

A column name, an exception's message, a model type or an answer may hold escape sequences that move the
cursor, marks that turn the reading direction, or a million characters. What does not simply appear on the
screen is written as its escape, so that a person sees what came: ESC becomes the four characters \\x1b.
"""

import unicodedata

LONGEST_FIELD = 200
LONGEST_TEXT = 20_000
COMBINING_RUN = 4
"""So many accents may stand on one letter; a pile of them runs over the lines above."""
INVISIBLE = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters by their category that draw nothing."""


def printable(text: str, limit: int = LONGEST_FIELD) -> str:
    """Returns `text` as one line of at most `limit` characters, none of which steers a terminal."""
    shown: list[str] = []
    length = accents = 0
    for character in text[: limit + 1]:  # each gives at least one
        accents = accents + 1 if unicodedata.combining(character) else 0
        piece = _shown(character, accents)
        shown.append(piece)
        length += len(piece)
        if length > limit:
            return "".join(shown)[: limit - 1] + "…"
    return "".join(shown)


def printable_lines(text: str, limit: int = LONGEST_TEXT) -> str:
    """Returns the first `limit` characters of `text`, each of its lines made printable.

    Lines end with a newline alone, and a tab is four spaces.
    """
    lines = (printable(line.replace("\t", "    "), limit) for line in text[:limit].split("\n"))
    return "\n".join(lines) + ("…" if len(text) > limit else "")


def _shown(character: str, accents: int) -> str:
    if accents > COMBINING_RUN or character in INVISIBLE:
        return _escape(character)
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return _escape(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
