"""One Ray session for all tests of actors, private and on the loopback address; started when asked for."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from runtime.blas import EXACT_VARIABLE

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # no token file in the tester's home
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "error",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "127.0.0.1,localhost",
    EXACT_VARIABLE: "1",  # Ray's workers are in exact mode, whatever this process is in
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """The GPU's lock is not that of the tester's own runs."""
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory):
    """A running Ray. Its socket paths need a short folder, which pytest's own is not."""
    home = tmp_path_factory.mktemp("ray-home")
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, "PIPPIN_HOME")}
    os.environ.update(ENVIRONMENT, PIPPIN_HOME=str(home))
    import ray

    temp = Path(tempfile.mkdtemp(prefix="pip", dir="/tmp"))
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        _temp_dir=str(temp),
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(temp, ignore_errors=True)
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
