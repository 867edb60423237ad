"""A person's request to pause and the machine's do not overwrite each other."""

from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory


def test_a_person_and_the_machine_ask_apart(tmp_path):
    run = RunDirectory(tmp_path, "run")
    run.create("", {})
    machine = PauseRequest(by="machine", reason="on battery")
    person = PauseRequest(by="user", reason="pippin stop", end=True)
    run.ask_to_pause(machine)
    assert run.pause_asked() and run.pause_request() == machine
    run.ask_to_pause(person)
    run.ask_to_pause(machine)  # it says so again, with other figures
    assert run.pause_request() == person
    run.withdraw_pause(of_machine=True)
    assert run.pause_asked() and run.pause_request() == person
    run.ask_to_pause(machine)
    run.withdraw_pause()
    assert not run.pause_asked() and run.pause_request() is None


def test_a_request_that_cannot_be_read_was_meant(run):
    (run.path / "pause.json").write_text("{")
    assert run.pause_asked() and run.pause_request() == PauseRequest(by="user", reason="asked to")
