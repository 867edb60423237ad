"""Of what a host's processes wrote, the end is kept and only the end is read."""

import tracemalloc

import pytest

from ops.cli import build_parser
from ops.kept_logs import KEPT_BYTES, keep_logs
from ops.logs import print_logs
from runtime.errors import BadInput
from runtime.rundir import RunDirectory


def test_a_log_of_gigabytes_is_kept_by_its_end(tmp_path):
    source = tmp_path / "session_1" / "logs"
    source.mkdir(parents=True)
    (logs := tmp_path / "run").mkdir()
    with (source / "worker-1.err").open("wb") as file:
        file.truncate(4 << 30)
        file.seek(0, 2)
        file.write(b"\nValueError: the cause\n")
    (source / "worker-2.err").write_bytes(b":job_id:01\n:actor_name:Learner\n")
    (source / "worker-3.err").symlink_to(source / "worker-1.err")
    tracemalloc.start()
    try:
        keep_logs(tmp_path, logs)
        assert tracemalloc.get_traced_memory()[1] < 8 * KEPT_BYTES
    finally:
        tracemalloc.stop()
    assert [path.name for path in logs.iterdir()] == ["ray-worker-1.err"]
    kept = (logs / "ray-worker-1.err").read_bytes()
    assert len(kept) <= KEPT_BYTES
    assert kept.endswith(b"ValueError: the cause\n")


def test_a_users_prints_are_shown_and_steer_no_terminal(tmp_path, capsys):
    run = RunDirectory(tmp_path, "run")
    run.logs.mkdir(parents=True)
    with (run.logs / "reward-0.log").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(0, 2)
        file.write(b"\nchecking\n\x1b[2J42\n")
    tracemalloc.start()
    try:
        print_logs(run, "reward-0", 2, follow=False)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert capsys.readouterr().out == "reward-0: checking\nreward-0: \\x1b[2J42\n"


def test_the_option_of_logs_is_actor_and_part_still_works():
    parser = build_parser()
    assert parser.parse_args(["logs", "q"]).actor is None
    for option in ("--actor", "--part"):
        assert parser.parse_args(["logs", "q", option, "learner-0"]).actor == "learner-0"


def test_an_actor_without_a_log_is_refused_with_the_names_of_those_that_have_one(tmp_path):
    run = RunDirectory(tmp_path, "q")
    run.logs.mkdir(parents=True)
    (run.logs / "learner-0.log").write_text("{}\n")
    with pytest.raises(BadInput, match=r"^--actor: q has logs of learner-0, not 'sampler-9'$"):
        print_logs(run, "sampler-9", 2, follow=False)
