"""A program that does a run on a small disk, which grows until the run fits: argv[1] has a model and `disk`.

It prints a JSON object for each start that the full disk stopped, then the facts of the finished run.
"""

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from ops.fault_injection.child import Job
from ops.fault_injection.fork_server import ForkServer
from ops.fault_injection.programs import begin, settings_of
from ops.host import DONE

SIZES_KB = range(48, 4096, 80)


def main(folder: Path) -> None:
    disk = str(folder / "disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    run = begin(settings_of("grpo", folder / "model"), folder / "disk", "run")
    with ForkServer() as server:
        for size in SIZES_KB:
            resized = ["mount", "-o", f"remount,size={size}k", disk]
            if subprocess.run(resized, capture_output=True).returncode:
                continue  # the disk cannot be smaller than its content
            ended = server.do(Job(what="run", path=str(run.path)))
            if ended.code == DONE:
                break
            stop = {"code": ended.code, "printed": ended.printed, "state": run.read_status().state,
                    "sentence": ended.result["sentence"]}  # fmt: skip
            print(json.dumps(stop))
        facts = server.do(Job(what="examine", path=str(run.path)))
        print(msgspec.json.encode(facts.result).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
