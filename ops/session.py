"""One run's private Ray session: loopback only, behind a token, in a folder of its own.

Everything here that concerns the environment must happen before `import ray`, which is why that import
is inside the functions.
"""

import logging
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import Any

import msgspec

from configs.schema import Settings
from ops import processes
from runtime.blas import EXACT_VARIABLE
from runtime.durable import write_file
from runtime.errors import BadInput, RunFailed
from runtime.home import home
from runtime.rundir import RunDirectory

LONGEST_TEMP_PATH = 41
"""Ray's sockets must fit into the 103 bytes that macOS allows; 62 are Ray's own."""
OWNER, HOST = "supervisor.pid", "host.pid"
NO_SESSION = -2
NOBODY = 2**31 - 1
"""A session and a process id that do not exist."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running session is found: the content of ray.json."""

    address: str
    dashboard: str
    token_path: str
    temp_dir: str
    metrics: str
    """Address of the Prometheus export, without a token by Ray's design."""


class RayFailed(Exception):
    """Ray did not start: it may the next time."""


def start_ray(settings: Settings, run: RunDirectory, temp: Path) -> Session:
    """Start Ray for a run, in this process; it ends with this process's session.

    Raises BadInput for a dashboard port in use, RayFailed if Ray does not start.
    """
    port = settings.dashboard.port
    if settings.dashboard.enabled:
        port = port or free_port()
        require_free(port)
    token_path = run.path / "ray.token"
    _write_token(token_path)
    metrics_port = free_port()
    os.environ.update(environment(settings, token_path))
    import ray

    from actors.pool import actors_of
    from actors.program import OBJECT_STORE_BYTES

    try:
        context = ray.init(
            address="local",
            num_cpus=min(os.cpu_count() or 1, 1 + len(actors_of(settings))),  # workers at once
            num_gpus=0,
            include_dashboard=settings.dashboard.enabled,
            dashboard_host="127.0.0.1",
            dashboard_port=port or None,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace=run.name,
            _temp_dir=str(temp),
            _metrics_export_port=metrics_port,
        )
    except Exception as error:  # Ray says "timed out" of a busy machine with a plain one
        raise RayFailed(
            f"Ray did not start: {(str(error) or repr(error)).splitlines()[0]}"
        ) from None
    url = context.dashboard_url
    session = Session(
        address=ray.get_runtime_context().gcs_address,
        dashboard=f"http://{url}" if url else "",
        token_path=str(token_path),
        temp_dir=str(temp),
        metrics=f"http://127.0.0.1:{metrics_port}/metrics",
    )
    write_file(run.path / "ray.json", msgspec.json.encode(session), durable=False)
    return session


def dead_daemons() -> list[str]:
    """Ray's daemons that this process started and that have died, by name."""
    from ray._private import worker

    node: Any = worker._global_node
    return sorted(str(kind) for kind, _ in node.dead_processes()) if node is not None else []


def environment(settings: Settings, token_path: Path) -> dict[str, str]:
    """What Ray's processes must find in their environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on the loopback address
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "1",  # they import while Ray and the conductor start
        "RAY_metrics_report_interval_ms": "2000",
        "OPENBLAS_NUM_THREADS": "1",
        "VECLIB_MAXIMUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the launcher has fetched what there was to fetch
        "NO_PROXY": "127.0.0.1,localhost",
        EXACT_VARIABLE: "1" if settings.exact else "0",
    }


def read_session(run: RunDirectory) -> Session:
    """The session of a run that is under way. Raises BadInput if it is not."""
    run.require()
    path = run.path / "ray.json"
    if not path.exists() or not run.locked():
        raise BadInput(f"run {run.name!r} is not running: it has no dashboard now")
    return msgspec.json.decode(path.read_bytes(), type=Session)


def free_port() -> int:
    """A port on the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free(port: int) -> None:
    """Raises BadInput if somebody listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(
                f"dashboard.port: {port} cannot be used ({error.strerror}); 0 takes a free one"
            ) from None


def _write_token(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(secrets.token_hex(32))


def temp_folder() -> Path:
    """A short folder of our own: under Pippin's home, or under /tmp where that path is too long.

    Folders of launchers that were killed are cleared away, with what is left of their processes.
    """
    name = secrets.token_hex(3)
    for parent in (home() / "r", Path(f"/tmp/pippin-{os.getuid()}")):
        if len(str(parent / name)) <= LONGEST_TEMP_PATH:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in parent.glob(f"[!.]*/{OWNER}"):  # not those that are only being made
                if not _alive(old):
                    _clear_away(old.parent)
            aside = parent / f".{name}"
            aside.mkdir(mode=0o700)
            (aside / OWNER).write_text(str(os.getpid()))
            return aside.rename(parent / name)
    raise RunFailed(f"no folder with a path of at most {LONGEST_TEMP_PATH} bytes for Ray's sockets")


def _alive(owner: Path) -> bool:
    try:
        os.kill(_number(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _clear_away(folder: Path) -> None:
    """What a killed supervisor left, where its watchdog has not come to it yet or was killed as well.

    Ray's daemons name the folder; the actors do not, but they are in one session with them.
    """
    host = _number(folder / HOST)
    daemons = processes.belonging(NO_SESSION, str(folder))
    sure = any(processes.session_of(daemon.pid) == host for daemon in daemons)
    processes.end(
        host if sure else NO_SESSION, str(folder)
    )  # a number alone may be another's by now
    shutil.rmtree(folder, ignore_errors=True)


def _number(file: Path) -> int:
    """A process id; one that nobody has where there is none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return NOBODY
