import pytest

from runtime.errors import BadInput, Damaged
from runtime.journal import Journal
from runtime.trajectory import digest, to_rows, with_columns
from runtime.trajectory_log import EMPTY_CHAIN, TrajectoryLog, batches, extend
from tests.runtime.test_trajectory import other, row, to_batch

BATCHES = [to_batch([row(step=s), other(step=s)], {"pippin.weights": f"{s}:x"}) for s in (1, 2, 3)]


@pytest.fixture
def log(tmp_path):
    log = TrajectoryLog(tmp_path / "log")
    yield log
    log.close()


def test_batches_come_back_with_rows_and_metadata(log, tmp_path):
    for batch in BATCHES:
        log.append(batch)
    log.sync()
    read = list(batches(tmp_path / "log"))
    assert [to_rows(b) for b in read] == [to_rows(b) for b in BATCHES]
    assert [b.schema.metadata for b in read] == [b.schema.metadata for b in BATCHES]
    assert (tmp_path / "log").stat().st_size == log.size


def test_equal_batches_have_an_equal_chain_whatever_the_clock_said(log, tmp_path):
    again = TrajectoryLog(tmp_path / "again")
    for batch in BATCHES:
        log.append(batch)
        again.append(with_columns(batch, {"seconds": [7.0, 8.0]}))
    assert log.chain == again.chain != EMPTY_CHAIN
    again.close()


def test_the_chain_sees_order_and_every_batch():
    def chain(order):
        link = EMPTY_CHAIN
        for i in order:
            link = extend(link, BATCHES[i])
        return link

    chains = [chain(order) for order in ([], [0], [0, 1], [1, 0], [0, 1, 2], [0, 2, 1], [0, 0])]
    assert len(set(chains)) == len(chains)
    assert digest(BATCHES[0]) not in chains


def test_going_back_and_doing_the_same_again_gives_the_same_chain(log):
    log.append(BATCHES[0])
    size, chain = log.size, log.chain
    log.append(BATCHES[2])
    log.restore(size, chain)
    for batch in BATCHES[1:]:
        log.append(batch)
    after_restore = log.chain
    log.restore(0, EMPTY_CHAIN)
    for batch in BATCHES:
        log.append(batch)
    assert log.chain == after_restore


def test_a_log_that_was_closed_goes_on_from_a_checkpoint(log, tmp_path):
    log.append(BATCHES[0])
    size, chain = log.size, log.chain
    log.append(BATCHES[1])
    log.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(b"PIPN torn")
    again = TrajectoryLog(tmp_path / "log")
    again.restore(size, chain)
    again.append(BATCHES[2])
    again.close()
    assert [to_rows(b)[0].step for b in batches(tmp_path / "log")] == [1, 3]


def test_a_log_shorter_than_its_checkpoint_is_damaged(log):
    log.append(BATCHES[0])
    with pytest.raises(Damaged, match="needs at least"):
        log.restore(log.size + 1, log.chain)


def test_a_log_of_another_history_is_not_gone_on_with(log, tmp_path):
    for batch in BATCHES[:2]:
        log.append(batch)
    size, chain = log.size, log.chain
    log.restore(0, EMPTY_CHAIN)
    for batch in (BATCHES[2], BATCHES[0]):  # as long, and whole
        log.append(batch)
    whole = (tmp_path / "log").read_bytes()
    assert (log.size, len(whole)) == (size, size)
    for attempt in (log.verify, log.restore):
        with pytest.raises(Damaged, match=f"the record before byte {size} is of another history"):
            attempt(size, chain)
        with pytest.raises(Damaged, match="before byte 0 is of another history"):
            attempt(0, chain)
    assert (tmp_path / "log").read_bytes() == whole


def test_verifying_cuts_nothing_and_makes_nothing(log, tmp_path):
    log.verify(0, EMPTY_CHAIN)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Damaged, match="cannot be read: No such file"):
        log.verify(7, "00" * 32)
    log.append(BATCHES[0])
    size, chain = log.size, log.chain
    log.append(BATCHES[1])
    whole = (tmp_path / "log").read_bytes()
    log.verify(size, chain)
    log.verify(0, EMPTY_CHAIN)
    assert (tmp_path / "log").read_bytes() == whole and log.size == len(whole)


def test_a_record_that_is_no_batch_is_damage(tmp_path):
    for payload in (b"", b"short", bytes(200), bytes(32) + b"\xff" * 60):
        journal = Journal(tmp_path / "log", keep=0)
        journal.append(payload)
        journal.close()
        with pytest.raises(Damaged, match="holds a record that is no batch"):
            list(batches(tmp_path / "log"))


def test_a_newer_schema_is_refused_with_both_versions(log, tmp_path):
    log.append(to_batch([row()], {"pippin.schema": "7"}))
    with pytest.raises(BadInput, match="trajectories of schema 7, this Pippin knows 2"):
        list(batches(tmp_path / "log"))
