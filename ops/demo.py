"""`make demo`: the quickstart, under a fresh name, from this checkout. Options go to `pippin launch`."""

import sys
from pathlib import Path

from ops.cli import main
from runtime.rundir import free_name

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.toml"
ROOT = Path("runs")

if __name__ == "__main__":
    name = free_name(ROOT, "demo")
    code = main(["launch", str(RECIPE), "--root", str(ROOT), "--name", name, *sys.argv[1:]])
    if code == 0:
        print(f"\nwhere to look: {ROOT / name}/metrics.jsonl, {ROOT / name}/evals/ (every answer),")
        print(f"  .venv/bin/pippin status {name}, .venv/bin/pippin export {name} DIR")
    sys.exit(code)
