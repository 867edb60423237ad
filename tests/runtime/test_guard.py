"""The guard where the system gives orphans to nobody in particular, as macOS does: with `ps` alone."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from runtime.guard import ps_table
from runtime.killable import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("ps", path="/bin"), reason="needs /bin/ps")

SCRIPT = """
import json, os, signal, sys, time
from runtime import guard

guard.LINUX = False
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork() == 0:  # leaves the session, and soon its parent
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        time.sleep(1000)
    time.sleep(1000)
tree = guard.Tree(pid)
while len(tree.look()) < 3:
    time.sleep(0.02)
os.kill(pid, signal.SIGKILL)
time.sleep(0.05)
orphans = tree.look()
big = tree.excess(1)
print(json.dumps([sorted(orphans), big]), flush=True)
tree.end()
print(json.dumps([sorted(tree.look()), tree.reap()]))
"""


def test_orphans_that_were_seen_as_descendants_are_found_and_ended():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (orphans, big), (left, _) = map(json.loads, done.stdout.splitlines())
    assert len(orphans) == 2
    assert big.startswith("memory ")
    assert left == []
    table = ps_table()  # in a container nobody may bury them
    assert [pid for pid in orphans if pid in table and not table[pid].dead] == []


def test_ps_tells_what_the_guard_needs_to_know():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        time.sleep(0.2)
        process = ps_table()[child.pid]
        assert (process.parent, process.group, process.dead) == (os.getpid(), os.getpgrp(), False)
        assert 1 << 20 < process.memory_bytes < 1 << 30
    finally:
        child.kill()
        child.wait()
