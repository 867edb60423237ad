"""Pairwise coverage covers each pair, in fewer cases than the product has."""

from itertools import combinations, product

from tests.pairs import pairs_first, pairwise

AXES = ["abcde", [1, 2, 3], ["x", "y", "z"], [True, False]]


def test_any_two_values_of_two_axes_meet_in_a_case():
    cases = pairwise(*AXES)
    for (i, one), (j, other) in combinations(enumerate(AXES), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(one, other))
    assert len(cases) < 20 < 90


def test_the_cases_are_the_same_each_time_and_each_is_there_once():
    cases = pairwise(*AXES)
    assert cases == pairwise(*AXES) and len(set(cases)) == len(cases)


def test_impossible_cases_are_not_made_and_the_other_pairs_are_still_covered():
    def possible(letter, number, *_):
        return (letter, number) != ("a", 2)

    cases = pairwise(*AXES, possible=possible)
    found = {case[:2] for case in cases}
    assert found == set(product("abcde", [1, 2, 3])) - {("a", 2)}


def test_the_rest_of_the_product_is_for_the_soak():
    found = pairs_first(*AXES)
    cases = pairwise(*AXES)
    assert found[: len(cases)] == cases
    rest = found[len(cases) :]
    assert {mark.name for param in rest for mark in param.marks} == {"soak"}
    assert sorted([*cases, *(param.values for param in rest)]) == sorted(product(*AXES))


def test_two_axes_need_their_product_and_one_axis_its_values():
    assert sorted(pairwise("ab", [1, 2])) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert pairwise("abc") == [("a",), ("b",), ("c",)]
