"""De-duplication against brute force: every pair by its exact Jaccard similarity."""

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.dedup import Dedup, band_count, deduplicate, jaccard, shingles, signature
from runtime.keys import Stream

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"


def sets(texts: list[str], settings: Dedup) -> list[set[int]]:
    return [set(shingles(text, settings).tolist()) for text in texts]


def brute_force(texts: list[str], settings: Dedup) -> list[int]:
    """The rows that stay if each is compared with every row that stayed before it."""
    all_sets, kept = sets(texts, settings), []
    for row, mine in enumerate(all_sets):
        if not any(
            len(mine & all_sets[k]) / len(mine | all_sets[k]) >= settings.threshold for k in kept
        ):
            kept.append(row)
    return kept


def changed(text: str, edits: int, *key: int | str) -> str:
    """The text with some of its words replaced."""
    words, stream = text.split(), Stream(*key)
    for _ in range(edits):
        words[stream.integer(0, len(words) - 1)] = f"w{stream.integer(0, 10**6)}"
    return " ".join(words)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """400 questions, of which every fourth comes again with none to eleven words changed."""
    if not GSM8K.exists():
        pytest.skip("the GSM8K files are not there")
    with GSM8K.open() as file:
        rows = [json.loads(line)["question"] for line, _ in zip(file, range(400))]
    again = [changed(row, i % 12, "again", i) for i, row in enumerate(rows[::4])]
    return Stream("order").shuffled(rows + again)


@pytest.mark.parametrize(
    ("unit", "threshold"),
    [
        ("word", 0.5),
        ("word", 0.95),
        ("char", 0.8),
        *(pytest.param(*case, marks=pytest.mark.soak)
          for case in [("word", 0.8), ("char", 0.5), ("char", 0.95)]),
    ],
)  # fmt: skip
def test_on_real_texts_it_keeps_what_brute_force_keeps(texts, unit, threshold):
    settings = Dedup(threshold=threshold, unit=unit, shingle=3 if unit == "word" else 9)
    result, expected = deduplicate(texts, settings), brute_force(texts, settings)
    assert len(set(result.kept) ^ set(expected)) <= 1  # a pair at the threshold may be overlooked
    assert len(texts) - len(expected) > 5
    all_sets = sets(texts, settings)
    for found in result.duplicates:
        a, b = all_sets[found.row], all_sets[found.of]
        assert found.similarity == pytest.approx(len(a & b) / len(a | b))
        assert found.similarity >= threshold and found.of < found.row
        assert found.exact == (texts[found.row] == texts[found.of])
    assert sorted([*result.kept, *(d.row for d in result.duplicates)]) == list(range(len(texts)))
    assert {d.of for d in result.duplicates} <= set(result.kept)


def test_signatures_estimate_the_similarity(texts):
    settings = Dedup(hashes=512)
    pairs = [(texts[i], changed(texts[i], i % 9, "pair", i)) for i in range(60)]
    errors = []
    for a, b in pairs:
        a_S, b_S = shingles(a, settings), shingles(b, settings)
        same = (signature(a_S, settings) == signature(b_S, settings)).mean()
        errors.append(same - jaccard(a_S, b_S))
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.03


def test_few_pairs_are_looked_at(texts, monkeypatch):
    looked = []

    def counted(a, b):
        looked.append(1)
        return jaccard(a, b)

    monkeypatch.setattr("runtime.dedup.jaccard", counted)
    deduplicate(texts, Dedup())
    assert len(looked) < len(texts)  # of 125,000


def test_the_first_stays_and_the_order_is_that_of_the_rows():
    a, b = "the quick brown fox jumps over the lazy dog", "nothing like it at all, not one bit"
    result = deduplicate([a, b, a, b.upper(), a + " "], Dedup(threshold=1.0))
    assert result.kept == [0, 1]
    found = [(d.row, d.of, d.similarity, d.exact) for d in result.duplicates]
    assert found == [(2, 0, 1, True), (3, 1, 1, False), (4, 0, 1, False)]


def test_a_repeated_near_duplicate_is_a_duplicate_of_the_kept_row():
    a, near = (
        "one two three four five six seven eight nine ten",
        "one two three four five six seven eight",
    )
    result = deduplicate([a, near, near], Dedup(threshold=0.5))
    assert result.kept == [0]
    assert [(d.row, d.of, d.exact) for d in result.duplicates] == [(1, 0, False), (2, 0, False)]
    assert result.duplicates[0].similarity == result.duplicates[1].similarity < 1


def test_the_seed_changes_hashes_and_not_the_result(texts):
    one, two = (deduplicate(texts, Dedup(seed=seed)) for seed in (0, 1))
    assert not np.array_equal(shingles(texts[0], Dedup()), shingles(texts[0], Dedup(seed=1)))
    assert len(set(one.kept) ^ set(two.kept)) <= 1
    assert deduplicate(texts, Dedup()) == one


def test_what_does_not_count_does_not_count():
    assert jaccard(shingles("Ａ  Cup of\tTEA", Dedup()), shingles("a cup of tea", Dedup())) == 1
    assert jaccard(shingles("a b c d", Dedup()), shingles("a b d c", Dedup())) == 0


@pytest.mark.parametrize("unit", ["word", "char"])
def test_short_empty_and_odd_texts_are_rows_like_others(unit):
    odd = ["", " ", "a", "a b", "\ud800", "\ud801", "\0", "日本語のテキスト", "😀" * 5]
    result = deduplicate([*odd, *odd], Dedup(unit=unit))
    assert result.kept == [0, 2, 3, 4, 5, 6, 7, 8]
    assert all(len(shingles(text, Dedup(unit=unit))) >= 1 for text in odd)
    assert deduplicate([], Dedup()).kept == []


def test_a_shingle_is_not_a_prefix_of_a_longer_one():
    assert jaccard(shingles("a b", Dedup()), shingles("a b c", Dedup())) == 0


def test_a_long_text_is_hashed_in_pieces(monkeypatch):
    text = " ".join(str(i) for i in range(1000))
    whole = signature(shingles(text, Dedup()), Dedup())
    monkeypatch.setattr("runtime.dedup.PIECE", 7)
    assert np.array_equal(signature(shingles(text, Dedup()), Dedup()), whole)


def test_bands_are_as_few_as_may_be():
    assert band_count(Dedup(threshold=1.0)) == 1
    assert band_count(Dedup(threshold=0.8)) < band_count(Dedup(threshold=0.5)) <= 64


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"threshold": 0.0}, "threshold: needed a number in"),
        ({"threshold": float("nan")}, "threshold: needed"),
        ({"threshold": 1.1}, "threshold: needed"),
        ({"shingle": 0}, "shingle: needed at least 1, got 0"),
        ({"hashes": 0}, "hashes: needed at least 1"),
        ({"threshold": 0.1, "hashes": 16}, "hashes: needed more to find pairs of similarity 0.1"),
    ],
)
def test_settings_without_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError) as caught:
        Dedup(**changes)
    assert str(caught.value).startswith(sentence)
