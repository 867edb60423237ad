"""One run's private Ray session: loopback only, behind TLS and a token, in a folder of its own.

Everything here that concerns the environment must happen before `import ray`, which is why that import
is inside the functions.
"""

import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import msgspec

from configs.schema import Settings
from ops.certificates import write_certificates
from ops.ray_environment import seal
from runtime.durable import write_file
from runtime.errors import BadInput
from runtime.rundir import RunDirectory


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Says where a running session is found: the content of ray.json."""

    address: str
    dashboard: str
    token_path: str
    temp_dir: str
    metrics: str
    """The address of the Prometheus export, without a token by Ray's design."""


class RayFailed(Exception):
    """Says that Ray did not start. It may the next time."""


def start_ray(settings: Settings, run: RunDirectory, temp: Path) -> Session:
    """Starts Ray for a run, in this process. It ends with this process's session.

    Raises BadInput for a dashboard port in use, RayFailed if Ray does not start.
    """
    port = settings.dashboard.port
    if settings.dashboard.enabled:
        port = port or free_port()
        require_free(port)
    token_path = run.path / "ray.token"
    _write_token(token_path)
    write_certificates(temp)
    metrics_port = free_port()
    seal(settings, token_path, temp)
    import ray

    from actors.pool import actors_of
    from actors.program import OBJECT_STORE_BYTES

    try:
        context = ray.init(
            address="local",
            # So many workers start at once.
            num_cpus=min(os.cpu_count() or 1, 1 + len(actors_of(settings))),
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
    """Returns the names of Ray's daemons that this process started and that have died."""
    from ray._private import worker

    node: Any = worker._global_node
    return sorted(str(kind) for kind, _ in node.dead_processes()) if node is not None else []


def read_session(run: RunDirectory) -> Session:
    """Returns the session of a run that is under way. Raises BadInput if it is not."""
    run.require()
    path = run.path / "ray.json"
    if not path.exists() or not run.locked():
        raise BadInput(f"run {run.name!r} is not running: it has no dashboard now")
    return msgspec.json.decode(path.read_bytes(), type=Session)


def free_port() -> int:
    """Returns a free port on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free(port: int) -> None:
    """Raises BadInput if the port is in use."""
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
