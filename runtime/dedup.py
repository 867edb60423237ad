"""De-duplication of text rows: equal ones, then near ones by Jaccard similarity of their shingles.

MinHash (Broder 1997) in bands only proposes pairs; each is then decided by the exact similarity, so
what is dropped is never a collision. A row is compared with the rows that are kept, in order: the
first stays, and the result depends on nothing but texts, settings and seed. A pair just at the
threshold is overlooked with a chance below `LARGEST_MISS`, a more similar one with less.

Shapes: S shingles of a row, H hashes of its signature.
"""

import math
import unicodedata
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from runtime.keys import GOLDEN, derive, mix

Hashes = NDArray[np.uint64]
LARGEST_MISS = 1e-3
PIECE = 1 << 16
"""Shingles that are hashed at once: 64 MB with 128 hashes."""


class Dedup(Struct, frozen=True, kw_only=True):
    """What counts as a near duplicate. Raises ValueError for settings without sense."""

    threshold: float = 0.8
    """Jaccard similarity from which on a row is one."""
    unit: Literal["word", "char"] = "word"
    shingle: int = 3
    """Units in a row that are one element of the set; a shorter text is one element."""
    hashes: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: needed a number in (0, 1], got {self.threshold}")
        if self.shingle < 1:
            raise ValueError(f"shingle: needed at least 1, got {self.shingle}")
        if self.hashes < 1:
            raise ValueError(f"hashes: needed at least 1, got {self.hashes}")
        if _miss(self.threshold, 1, self.hashes) > LARGEST_MISS:
            raise ValueError(
                f"hashes: needed more to find pairs of similarity {self.threshold}, got {self.hashes}"
            )


class Duplicate(Struct, frozen=True):
    """A row that is dropped, the kept one that it repeats, and how similar they are."""

    row: int
    of: int
    similarity: float
    """1 for equal shingles; then `exact` says whether the texts are equal too."""
    exact: bool


class Result(Struct, frozen=True):
    """Rows that stay, in order, and those that do not."""

    kept: list[int]
    duplicates: list[Duplicate]


def deduplicate(texts: Iterable[str], settings: Dedup) -> Result:
    """Which rows are new. A near duplicate names the first kept row that it is similar enough to."""
    bands = band_count(settings)
    seen: dict[str, Duplicate] = {}
    buckets: dict[tuple[int, bytes], list[int]] = {}
    sets: dict[int, Hashes] = {}
    words: dict[str, int] = {}
    kept: list[int] = []
    duplicates: list[Duplicate] = []
    for row, text in enumerate(texts):
        if text in seen:
            duplicates.append(msgspec.structs.replace(seen[text], row=row))
            continue
        mine = shingles(text, settings, words)
        places = _places(signature(mine, settings), bands)
        candidates = sorted({other for place in places for other in buckets.get(place, ())})
        found = next(
            (
                Duplicate(row, other, similarity, exact=False)
                for other in candidates
                if (similarity := jaccard(mine, sets[other])) >= settings.threshold
            ),
            None,
        )
        # What a repetition of this text will be: of this row, or of the one that this row repeats.
        seen[text] = found or Duplicate(row, row, 1.0, exact=True)
        if found:
            duplicates.append(found)
            continue
        kept.append(row)
        sets[row] = mine
        for place in places:
            buckets.setdefault(place, []).append(row)
    return Result(kept, duplicates)


def shingles(text: str, settings: Dedup, words: dict[str, int] | None = None) -> Hashes:
    """The distinct shingles of a text as sorted keyed hashes [S], at least one.

    Case, compatible forms (NFKC) and the amount of white space do not count. `words` remembers the
    hashes of words from one text to the next.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if settings.unit == "char":
        units = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        units = mix(units + np.uint64(derive(settings.seed, "char")))
    else:
        known = {} if words is None else words
        for word in plain.split(" "):
            if word not in known:
                # Surrogates that stand alone cannot be encoded as they are.
                known[word] = derive(settings.seed, "word", ascii(word))
        units = np.array([known[word] for word in plain.split(" ")], np.uint64)
    length = max(min(settings.shingle, len(units)), 1)
    count = max(len(units) - length + 1, 1)
    hashes = np.full(count, np.uint64(derive(settings.seed, "shingle", length)))
    for offset in range(min(length, len(units))):
        hashes = mix(hashes * GOLDEN + units[offset : offset + count])
    return np.unique(hashes)


def signature(shingles_S: Hashes, settings: Dedup) -> Hashes:
    """The smallest value [H] that each of the keyed hash functions takes on the set."""
    keys_H = np.array(
        [derive(settings.seed, "minhash", h) for h in range(settings.hashes)], np.uint64
    )
    smallest_H = np.full(settings.hashes, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles_S), PIECE):
        piece_S = shingles_S[start : start + PIECE]
        smallest_H = np.minimum(smallest_H, mix(piece_S[:, None] ^ keys_H[None, :]).min(axis=0))
    return smallest_H


def jaccard(a_S: Hashes, b_S: Hashes) -> float:
    """Shared shingles over all of either: 1 for equal sets."""
    shared = len(np.intersect1d(a_S, b_S, assume_unique=True))
    return shared / (len(a_S) + len(b_S) - shared)


def band_count(settings: Dedup) -> int:
    """The fewest bands, and so the fewest pairs to look at, that overlook no more than they may."""
    counts = sorted({settings.hashes // rows for rows in range(1, settings.hashes + 1)})
    for bands in counts:
        if _miss(settings.threshold, settings.hashes // bands, bands) <= LARGEST_MISS:
            return bands
    return settings.hashes


def _miss(similarity: float, rows: int, bands: int) -> float:
    """Chance that a pair agrees in all rows of no band."""
    return math.pow(1 - similarity**rows, bands)


def _places(signature_H: Hashes, bands: int) -> list[tuple[int, bytes]]:
    rows = len(signature_H) // bands
    return [(band, signature_H[band * rows : (band + 1) * rows].tobytes()) for band in range(bands)]
