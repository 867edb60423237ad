"""De-duplication of text rows: equal ones, then near ones by Jaccard similarity of their shingles.

MinHash (Broder 1997) in bands only proposes pairs. The exact similarity then decides each pair, so no row is
dropped for a hash collision. A row is compared with the kept rows before it: the first one stays, and the
result depends on nothing but texts, settings and seed. A pair exactly at the threshold is missed with a
probability below `LARGEST_MISS`, a more similar pair with a smaller one.

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
"""Number of shingles that are hashed at once: 64 MB with 128 hashes."""


class Dedup(Struct, frozen=True, kw_only=True):
    """The definition of a near duplicate. Raises ValueError for settings out of range."""

    threshold: float = 0.8
    """Smallest Jaccard similarity of a near duplicate."""
    unit: Literal["word", "char"] = "word"
    shingle: int = 3
    """Number of consecutive units that form one shingle; a shorter text is one shingle."""
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
    """A dropped row, the kept row that it repeats, and their similarity."""

    row: int
    of: int
    similarity: float
    """Jaccard similarity; 1 for equal shingles, and then `exact` is True if the texts are equal too."""
    exact: bool


class Result(Struct, frozen=True):
    """The kept rows in order, and the dropped ones."""

    kept: list[int]
    duplicates: list[Duplicate]


def deduplicate(texts: Iterable[str], settings: Dedup) -> Result:
    """Returns the kept and dropped rows. A near duplicate names the first kept row that is similar enough."""
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
        own = shingles(text, settings, words)
        places = _places(signature(own, settings), bands)
        candidates = sorted({other for place in places for other in buckets.get(place, ())})
        found = next(
            (
                Duplicate(row, other, similarity, exact=False)
                for other in candidates
                if (similarity := jaccard(own, sets[other])) >= settings.threshold
            ),
            None,
        )
        # A later row with the same text repeats this row, or the row that this one repeats.
        seen[text] = found or Duplicate(row, row, 1.0, exact=True)
        if found:
            duplicates.append(found)
            continue
        kept.append(row)
        sets[row] = own
        for place in places:
            buckets.setdefault(place, []).append(row)
    return Result(kept, duplicates)


def shingles(text: str, settings: Dedup, words: dict[str, int] | None = None) -> Hashes:
    """Returns the distinct shingles of a text as sorted keyed hashes [S], at least one.

    Case, compatible forms (NFKC) and the amount of white space do not count. `words` caches the hashes of
    words from one text to the next.
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
    """Returns the smallest value [H] of each keyed hash function on the set of shingles."""
    keys_H = np.array(
        [derive(settings.seed, "minhash", h) for h in range(settings.hashes)], np.uint64
    )
    smallest_H = np.full(settings.hashes, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles_S), PIECE):
        piece_S = shingles_S[start : start + PIECE]
        smallest_H = np.minimum(smallest_H, mix(piece_S[:, None] ^ keys_H[None, :]).min(axis=0))
    return smallest_H


def jaccard(a_S: Hashes, b_S: Hashes) -> float:
    """Returns the number of shared shingles over the number of all: 1 for equal sets."""
    shared = len(np.intersect1d(a_S, b_S, assume_unique=True))
    return shared / (len(a_S) + len(b_S) - shared)


def band_count(settings: Dedup) -> int:
    """Returns the smallest number of bands, and so of pairs to compare, that keeps to `LARGEST_MISS`."""
    counts = sorted({settings.hashes // rows for rows in range(1, settings.hashes + 1)})
    for bands in counts:
        if _miss(settings.threshold, settings.hashes // bands, bands) <= LARGEST_MISS:
            return bands
    return settings.hashes


def _miss(similarity: float, rows: int, bands: int) -> float:
    """Returns the probability that a pair of this similarity agrees in no band."""
    return math.pow(1 - similarity**rows, bands)


def _places(signature_H: Hashes, bands: int) -> list[tuple[int, bytes]]:
    rows = len(signature_H) // bands
    return [(band, signature_H[band * rows : (band + 1) * rows].tobytes()) for band in range(bands)]
