"""The run on real processes that tests share: slow, disturbed at will, watched in all that it does."""

import json
import os
import re
from pathlib import Path

from configs.schema import Settings
from ops.machine import VARIABLE
from runtime.status import Status
from tests.actors.tiny import GRADED, settings
from tests.ops.intruder import watch_the_network
from tests.ops.real_run import RealRun

DUTY_CYCLE, LIMIT_S, GONE_S = 0.5, 4, 10.0
CALLERS_TOKEN = "a-token-that-the-caller-had-in-its-environment"
SLOW = GRADED.replace(
    "    return", "    import os, time; time.sleep(0.01 * os.path.exists({!r}))\n    return"
)
"""The same reward, which takes 10 ms as long as a file exists."""


def wanted(folder: Path, **changes) -> Settings:
    """Returns settings with one process for each role."""
    return settings(
        folder, exact=True, eval={"prompts": 3, "every_steps": 5},
        actors={"samplers": 1, "verifiers": 1}, **changes,
    )  # fmt: skip


class DisturbedRun(RealRun):
    """The run that the tests share and disturb."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.machine = folder / "machine.json"
        self.set_machine()
        self.slow = folder / "slow"
        self.slow.touch()
        self.wanted = wanted(folder, algorithm__steps=150)
        disturbed = wanted(
            folder, algorithm__steps=150, reward=SLOW.format(str(self.slow)),
            power={"on_battery": "pause", "duty_cycle": DUTY_CYCLE}, dashboard={"enabled": False},
            deadlines={"generate_s": LIMIT_S, "score_s": LIMIT_S},
        )  # fmt: skip
        self.network = folder / "network.jsonl"
        watch_the_network(folder, self.network)
        path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        callers = {
            "PYTHONPATH": os.pathsep.join(path), "RAY_AUTH_MODE": "disabled",
            "RAY_AUTH_TOKEN": CALLERS_TOKEN, "RAY_AUTH_TOKEN_PATH": str(folder / "no-token"),
        }  # fmt: skip
        super().__init__(home, disturbed, "disturbed", **{VARIABLE: str(self.machine)}, **callers)

    def set_machine(self, **reading) -> None:
        """Changes what the simulated machine reports, such as `on_battery=True`."""
        aside = self.machine.with_suffix(".aside")
        aside.write_text(json.dumps(reading))
        aside.rename(self.machine)

    def computing(self) -> Status:
        """Returns the status after two more steps; starts the run if it does not run."""
        if not self.status().alive:
            self.launch("resume" if self.run.path.exists() else "launch")
        return self.running(self.status().step + 2)

    def two_steps_after(self, since: Status) -> Status:
        """Returns the status once two more steps than in `since` are done."""
        return self.running(since.step + 2)

    def refused(self, verb: str) -> str:
        """Returns the sentence with which a command is refused in the run's present state."""
        done = self.pippin(verb)
        assert (done.returncode, done.stdout) == (2, "")
        said = re.fullmatch(r"pippin: run 'disturbed' (.+)\n", done.stderr)
        assert said, done.stderr
        return said[1]
