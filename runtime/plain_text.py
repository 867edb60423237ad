"""The filter for foreign text, which makes it safe to print on a terminal.

A column name, an exception's message, a model type or an answer may hold escape sequences that move the
cursor, marks that turn the reading direction, or a million characters. A character that is not visible is
written as its escape, so that the user sees it: ESC becomes the four characters \\x1b.
"""

import unicodedata

LONGEST_FIELD = 200
LONGEST_TEXT = 20_000
COMBINING_RUN = 4
"""Largest number of accents on one letter; more of them would cover the lines above."""
INVISIBLE = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Characters that are invisible, although their Unicode category is that of letters or symbols."""


def printable(text: str, limit: int = LONGEST_FIELD) -> str:
    """Returns `text` as one line of at most `limit` characters, without any that control a terminal."""
    shown: list[str] = []
    length = accents = 0
    for character in text[: limit + 1]:  # each one becomes at least one character
        accents = accents + 1 if unicodedata.combining(character) else 0
        piece = _shown(character, accents)
        shown.append(piece)
        length += len(piece)
        if length > limit:
            return "".join(shown)[: limit - 1] + "…"
    return "".join(shown)


def printable_lines(text: str, limit: int = LONGEST_TEXT) -> str:
    """Returns the first `limit` characters of `text` with each line made printable.

    Only a newline ends a line, and a tab becomes four spaces.
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
