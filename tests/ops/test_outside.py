"""The kernel's word for it: no process of a run, Ray's daemons in C++ among them, connects to the outside."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.actors.tiny import settings
from tests.ops.real_run import RealRun

CONNECT = re.compile(r"(?:connect|sendto|sendmsg)\(.*?sa_family=AF_INET.*")
LOOPBACK = re.compile(r'"(?:127\.\d+\.\d+\.\d+|::1|::ffff:127\.\d+\.\d+\.\d+)"')


@pytest.mark.soak
def test_a_run_under_strace_connects_to_the_loopback_address_alone(tmp_path):
    traced = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o"]
    if not shutil.which("strace"):
        pytest.skip("strace is not installed here (Debian: apt-get install strace)")
    if subprocess.run([*traced, "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process be traced")
    home = Path(tempfile.mkdtemp(prefix="pip", dir="/tmp"))
    living = RealRun(home, settings(tmp_path, algorithm__steps=2))
    try:
        done = living.pippin("launch", under=[*traced, str(tmp_path / "trace")])
        assert done.returncode == 0, done.stderr
    finally:
        living.end()
        shutil.rmtree(home, ignore_errors=True)
    calls = CONNECT.findall((tmp_path / "trace").read_text(errors="replace"))
    assert len(calls) > 20
    assert [call for call in calls if not LOOPBACK.search(call)] == []
