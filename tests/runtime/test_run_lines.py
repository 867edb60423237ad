"""Lines are appended, kept up to a step, and left out where they are torn."""

import msgspec


def test_lines_are_kept_up_to_a_step_and_a_torn_one_is_left_out(run):
    for step in range(1, 6):
        run.append_line("metrics.jsonl", {"step": step, "loss": step / 2})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')
    assert [line["step"] for line in run.read_lines("metrics.jsonl")] == [1, 2, 3, 4, 5]
    run.keep_lines("metrics.jsonl", 3)
    run.append_line("metrics.jsonl", {"step": 4, "loss": 9.0})
    assert run.read_lines("metrics.jsonl") == [
        {"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 1.5},
        {"step": 4, "loss": 9.0},
    ]  # fmt: skip
    assert all(msgspec.json.decode(x) for x in (run.path / "metrics.jsonl").open("rb"))
    run.keep_lines("none.jsonl", 3)
    assert run.read_lines("none.jsonl") == []


def test_a_line_of_another_file_is_left_out(run):
    run.append_line("metrics.jsonl", {"step": 1})
    run.append_line("evals.jsonl", {"step": 1, "metric": "pass@1"})
    evals = (run.path / "evals.jsonl").read_bytes()
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(evals)
    assert run.read_lines("metrics.jsonl") == [{"step": 1}]


def test_steps_whose_lines_are_lost_are_named(run):
    for step in (1, 2, 4):
        run.append_line("metrics.jsonl", {"step": step})
    assert run.keep_lines("metrics.jsonl", 4, [(1, None), (2, None), (4, None)]) == ""
    sentence = run.keep_lines("metrics.jsonl", 4, [(step, None) for step in range(1, 12)])
    assert (
        sentence
        == f"{run.path / 'metrics.jsonl'}: damaged, it has lost step 3, 5, 6, 7, 8 and 3 others"
    )
