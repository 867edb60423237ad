import random

from runtime.ledger import Ledger


def test_pulled_is_trained_dropped_failed_and_in_flight_after_any_history():
    dice = random.Random(0)
    for _ in range(200):
        ledger, flight = Ledger(), 0
        totals = {"trained": 0, "dropped": 0, "failed": 0}
        for _ in range(dice.randrange(30)):
            if dice.random() < 0.5:
                count = dice.randrange(20)
                ledger, flight = ledger.pull(count), flight + count
            else:
                trained, dropped, failed = (dice.randrange(flight // 3 + 1) for _ in range(3))
                flight -= trained + dropped + failed
                totals["trained"] += trained
                totals["dropped"] += dropped
                totals["failed"] += failed
                ledger = ledger.settle(
                    trained,
                    dice.choices(["zero_variance", "truncated"], k=dropped),
                    dice.choices(["raised", "timed_out"], k=failed),
                )
            assert ledger.in_flight == flight
            assert ledger.trained == totals["trained"]
            assert sum(ledger.dropped.values()) == totals["dropped"]
            assert sum(ledger.failed.values()) == totals["failed"]
            assert ledger.pulled == sum(totals.values()) + flight


def test_reasons_and_kinds_are_counted_by_name():
    ledger = Ledger().pull(9).settle(2, ["b", "a", "b"], ["raised"])
    ledger = ledger.settle(0, ["a"], ["timed_out", "raised"])
    assert ledger.as_dict() == {
        "pulled": 9,
        "trained": 2,
        "dropped": {"a": 2, "b": 2},
        "failed": {"raised": 2, "timed_out": 1},
        "in_flight": 0,
    }


def test_a_ledger_is_never_changed_in_place():
    before = Ledger().pull(4)
    before.settle(1, ["a"], ["raised"])
    before.pull(3)
    assert before.as_dict() == {
        "pulled": 4, "trained": 0, "dropped": {}, "failed": {}, "in_flight": 4,
    }  # fmt: skip


def test_what_is_settled_twice_shows_as_a_negative_flight():
    assert Ledger().pull(2).settle(3).in_flight == -1
