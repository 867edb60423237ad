"""`make demo`: the quickstart, under a fresh name, from this checkout. Options go to `pippin launch`."""

import signal
import subprocess
import sys
from pathlib import Path

from ops.terminal import say
from runtime.rundir import free_name

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.toml"
ROOT = Path("runs")

if __name__ == "__main__":
    name = free_name(ROOT, "demo")
    launch = ["launch", str(RECIPE), "--root", str(ROOT), "--name", name, *sys.argv[1:]]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which says what it does
    code = subprocess.run(
        [sys.executable, "-m", "ops.cli", *launch],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ).returncode
    if code == 0:
        say(f"\nwhere to look: {ROOT / name}/metrics.jsonl, {ROOT / name}/evals/ (every answer),")
        say(f"  .venv/bin/pippin status {name}, .venv/bin/pippin export {name} DIR")
    sys.exit(code)
