"""`pippin ledger` accounts for every trajectory, compares status and log, and gives no traceback."""

import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ops.cli import main
from ops.ledger import BARS, BINS, Account, account, account_parts
from ops.terminal import write
from runtime.errors import BadInput
from runtime.ledger import Ledger
from runtime.rundir import RunDirectory
from runtime.status import Status
from runtime.trajectory import StopReason, Trajectory, to_batch
from runtime.trajectory_log import TrajectoryLog


def row(step: int, sample: int, length: int, **changes) -> Trajectory:
    """Returns a trajectory of two prompt tokens and `length` sampled ones."""
    values = {
        "step": step, "task": "t", "prompt_index": 0, "sample": sample, "key": 1,
        "tokens": [3] * (length + 2), "sampled": [False] * 2 + [True] * length,
        "logprobs": [0.0] * (length + 2), "weights_version": [0] * (length + 2),
        "prompt_tokens": 2, "temperature": 1.0, "stop_reason": StopReason.STOP, "text": "",
    }  # fmt: skip
    return Trajectory(**(values | changes))


def rows(step: int) -> list[Trajectory]:
    """Returns four trained trajectories of 2 to 8 tokens, two dropped of 20 and 21, one failed of 5."""
    return [
        *(row(step, i, 2 * i + 2) for i in range(4)),
        *(row(step, 4 + i, 20 + i, dropped="truncated") for i in range(2)),
        row(step, 6, 5, failure="timed_out"),
    ]


def settled(steps: int) -> Ledger:
    return Ledger(pulled=7 * steps, trained=4 * steps, dropped={"truncated": 2 * steps},
                  failed={"timed_out": steps})  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs", "demo")
    run.create("", {})
    return run


def noted(run: RunDirectory, step: int, ledger: dict | None = None) -> None:
    kept = settled(step).as_dict() if ledger is None else ledger
    run.write_status(Status(name="demo", state="finished", step=step, steps=9, ledger=kept))


def logged(run: RunDirectory, steps: int, make=rows) -> None:
    log = TrajectoryLog(run.trajectories)
    for step in range(1, steps + 1):
        log.append(to_batch(make(step)))
    log.close()


def account_text(found: Account) -> str:
    out = io.StringIO()
    write(out, *account_parts(found))
    return out.getvalue()


def command(run: RunDirectory, *options: str) -> int:
    return main(["ledger", "demo", "--root", str(run.path.parent), *options])


def test_the_sum_has_a_line_for_each_outcome_and_adds_up(run, capsys):
    logged(run, 300)
    noted(run, 300)
    assert command(run) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[:8] == [
        "demo: finished, step 300 of 9",
        "",
        "  2,100 pulled",
        "= 1,200 trained",
        "+   600 dropped: truncated",
        "+   300 failed: timed_out",
        "+     0 in flight",
        "  it adds up",
    ]
    assert "disagree" not in said.out


def test_the_lengths_are_those_of_the_log(run):
    logged(run, 3)
    noted(run, 3)
    found = account(run)
    assert [(p.outcome, p.reason, p.rows, p.mean, p.median, p.p95, p.largest) for p in found.lengths] == [
        ("trained", "", 12, 5.0, 5.0, 8, 8),
        ("dropped", "truncated", 6, 20.5, 20.5, 21, 21),
        ("failed", "timed_out", 3, 5.0, 5.0, 5, 5),
    ]  # fmt: skip
    assert (found.log_rows, found.log_last_step, found.bin_tokens) == (21, 3, 2)
    for profile in found.lengths:
        assert len(profile.histogram) == BINS
        assert sum(profile.histogram) == profile.rows
    assert found.lengths[0].histogram[:5] == [0, 3, 3, 3, 3]


@pytest.mark.parametrize("seed", range(5))
def test_the_statistics_are_numpy_s_of_the_same_lengths(run, seed):
    lengths = np.random.default_rng(seed).integers(0, 900, 57).tolist()
    logged(run, 1, lambda step: [row(step, i, n) for i, n in enumerate(lengths)])
    noted(run, 1, Ledger(pulled=57, trained=57).as_dict())
    (profile,) = account(run).lengths
    assert (profile.mean, profile.median) == (np.mean(lengths), np.median(lengths))
    assert profile.p95 == sorted(lengths)[54]  # the 55th of 57 is the first behind 95 %
    width = account(run).bin_tokens
    assert profile.histogram == [
        sum(k * width <= n < (k + 1) * width for n in lengths) for k in range(BINS)
    ]


def test_what_is_sampled_counts_and_not_the_prompt_or_what_was_appended(run):
    turns = {"sampled": [False, False, True, False, True, False]}
    logged(run, 1, lambda step: [row(step, 0, 4, **turns)])
    assert account(run).lengths[0].mean == 2


def test_rows_of_data_have_the_length_of_their_answer(run):
    data = {"sampled": [False] * 9, "stop_reason": StopReason.DATA}
    logged(
        run, 1, lambda step: [row(step, 0, 7, **data), row(step, 1, 7, dropped="too_long", **data)]
    )
    noted(run, 1, Ledger(pulled=2, trained=1, dropped={"too_long": 1}).as_dict())
    found = account(run)
    assert [p.mean for p in found.lengths] == [7, 7]
    assert found.measured == "tokens of the answer" and found.remarks == []


# ── whether long ones are lost ───────────────────────────────────────────────────────────────────


def test_lengths_that_differ_are_one_sentence(run):
    logged(run, 2)
    noted(run, 2)
    (sentence,) = account(run).remarks
    assert sentence == (
        "Against what was trained on (mean 5.0 tokens), all that was lost is 207% longer, "
        "dropped: truncated is 310% longer."
    )


@pytest.mark.parametrize(
    ("dropped", "said"),
    [(10, ""), (12, ""), (8, ""), (13, "dropped: x is 30% longer"), (7, "dropped: x is 30% shorter")],
)  # fmt: skip
def test_a_difference_of_up_to_a_fifth_is_not_reported(run, dropped, said):
    logged(run, 1, lambda step: [row(step, 0, 10), row(step, 1, dropped, dropped="x")])
    noted(run, 1, Ledger(pulled=2, trained=1, dropped={"x": 1}).as_dict())
    remarks = account(run).remarks
    assert remarks == ([f"Against what was trained on (mean 10.0 tokens), {said}."] if said else [])


def test_where_nothing_is_trained_on_or_all_is_empty_there_is_nothing_to_compare(run):
    logged(run, 1, lambda step: [row(step, 0, 0), row(step, 1, 9, dropped="x")])
    noted(run, 1, Ledger(pulled=2, trained=1, dropped={"x": 1}).as_dict())
    assert account(run).remarks == []
    run.trajectories.unlink()
    logged(run, 1, lambda step: [row(step, 1, 9, dropped="x")])
    noted(run, 1, Ledger(pulled=1, dropped={"x": 1}).as_dict())
    assert account(run).remarks == []


def test_the_fullest_bin_is_the_tallest_and_one_row_is_seen(run):
    lengths = [0] * 1000 + [15]
    logged(run, 1, lambda step: [row(step, i, n) for i, n in enumerate(lengths)])
    noted(run, 1, Ledger(pulled=1001, trained=1001).as_dict())
    assert account_text(account(run)).splitlines()[-1].endswith(f"{BARS[-1]}{'·' * 14}{BARS[0]}")


# ── two sources ──────────────────────────────────────────────────────────────────────────────────


def remarks(run: RunDirectory) -> list[str]:
    return [r for r in account(run).remarks if not r.startswith("Against")]


def test_a_log_that_is_ahead_of_the_status_says_so(run):
    logged(run, 3)
    noted(run, 2)
    assert remarks(run) == [
        "The log goes on to step 3: 7 of its rows are not in the ledger, which stands at step 2."
    ]


def test_a_log_that_is_behind_the_status_says_what_it_lacks(run):
    logged(run, 2)
    noted(run, 3)
    assert remarks(run) == [
        "Up to step 3 log and ledger disagree: dropped: truncated 4 against 6, "
        "failed: timed_out 2 against 3, trained 8 against 12."
    ]


def test_an_outcome_that_only_one_of_them_knows_is_named(run):
    logged(run, 1)
    ledger = Ledger(pulled=7, trained=6, failed={"died": 1})
    noted(run, 1, ledger.as_dict())
    assert remarks(run) == [
        "Up to step 1 log and ledger disagree: dropped: truncated 2 against 0, "
        "failed: died 0 against 1, failed: timed_out 1 against 0, trained 4 against 6."
    ]


# ── what is not as it should be ──────────────────────────────────────────────────────────────────


def test_a_run_that_has_only_begun_has_nothing_to_account_for(run, capsys):
    assert command(run) == 0
    said = capsys.readouterr().out
    assert "it adds up" in said and "no trajectories in the log yet" in said
    run.trajectories.touch()
    assert command(run) == 0


def test_in_flight_is_a_part_of_the_sum(run):
    noted(run, 0, Ledger(pulled=5).as_dict())
    assert account(run).adds_up
    assert "+ 5 in flight" in account_text(account(run))


@pytest.mark.parametrize(
    ("ledger", "verdict"),
    [
        ({"pulled": 5, "trained": 3, "in_flight": 0}, "it does not add up: 2 are missing"),
        ({"pulled": 1, "failed": {"a": 3}, "in_flight": 0}, "it does not add up: 2 are too many"),
        (Ledger(pulled=1, trained=3).as_dict(), "it does not add up: 2 were settled twice"),
        ({"pulled": 1, "trained": 2, "dropped": {"a": -1}}, "it does not add up: a count is negative"),
    ],
)  # fmt: skip
def test_a_ledger_that_does_not_add_up_fails_the_command(run, capsys, ledger, verdict):
    noted(run, 1, ledger)
    assert command(run) == 1
    assert verdict in capsys.readouterr().out


def test_at_any_torn_byte_the_whole_batches_before_it_are_told(run, capsys):
    logged(run, 2)
    noted(run, 2)
    whole = run.trajectories.read_bytes()
    for length in [*range(0, len(whole), 997), len(whole) - 1]:
        run.trajectories.write_bytes(whole[:length])
        assert command(run) == 0
        assert account(run).log_rows in (0, 7)
    assert capsys.readouterr().err == ""


def test_damage_is_one_sentence_after_what_can_be_said(run, capsys):
    logged(run, 3)
    noted(run, 3)
    content = bytearray(run.trajectories.read_bytes())
    content[len(content) // 2] ^= 1
    run.trajectories.write_bytes(content)
    assert command(run) == 1
    said = capsys.readouterr()
    assert "it adds up" in said.out and "sampled tokens" in said.out
    assert said.err.startswith(f"pippin: {run.trajectories}: the record at byte ")
    assert said.err.count("\n") == 1
    assert command(run, "--json") == 1
    assert json.loads(capsys.readouterr().out)["problem"] in said.err


@pytest.mark.parametrize("ledger", [{"trained": "x"}, {"dropped": 3}, {"failed": {"a": None}}])
def test_a_damaged_ledger_is_one_sentence(run, ledger):
    noted(run, 1, ledger)
    with pytest.raises(BadInput, match=r"status\.json: its ledger is damaged: "):
        account(run)


def test_a_log_that_is_a_folder_is_one_sentence(run, capsys):
    run.trajectories.mkdir()
    assert command(run) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_in_the_log_cannot_write_on_the_terminal(run):
    logged(run, 1, lambda step: [row(step, 0, 3, failure="\x1b[2J\nx" + "y" * 900)])
    text = account_text(account(run))
    assert "\x1b" not in text and "failed: ?[2J?x" in text
    assert max(map(len, text.splitlines())) < 200


def test_json_has_all_of_it(run, capsys):
    logged(run, 2)
    noted(run, 2)
    assert command(run, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ledger"] == settled(2).as_dict()
    assert said["adds_up"] is True
    assert said == msgspec.to_builtins(account(run))


def test_no_such_run_is_bad_input(run):
    assert main(["ledger", "other", "--root", str(run.path.parent)]) == 2
