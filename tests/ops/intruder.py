"""What another process of the machine can try on a run: it sees its ports, and what it leaves open.

Also the witness of what a run asks of the network: an audit hook in every Python process of it.
"""

import json
import re
import threading
from pathlib import Path

import grpc

SYNC = "/ray.rpc.syncer.RaySyncer/StartSync"
LISTENS = "0A"
LOOPBACK = ("127.", "::1", "::ffff:127.", "localhost")
WITNESS = """
import json, os, sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        place = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        line = json.dumps([event, list(place) if isinstance(place, tuple) else str(place)]) + "\\n"
        descriptor = os.open({file!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)
sys.addaudithook(hook)
"""


def watch_the_network(folder: Path, file: Path) -> None:
    """Write what makes each Python process with `folder` on its path note in `file` where it connects."""
    (folder / "sitecustomize.py").write_text(WITNESS.format(file=str(file)))


def asked_of_the_network(file: Path) -> tuple[list[str], int]:
    """Returns what went beyond the loopback address, and how much did not."""
    outside, inside = [], 0
    for line in file.read_text().splitlines():
        event, place = json.loads(line)
        host = place[0] if isinstance(place, list) else place
        if isinstance(place, str) and event != "socket.getaddrinfo":
            inside += 1  # the path of a Unix socket
        elif str(host).startswith(LOOPBACK) or not host:
            inside += 1
        else:
            outside.append(f"{event} {place}")
    return outside, inside


def ports_of(pid: int) -> set[int]:
    """Returns the TCP ports that a process listens on (Linux)."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in inodes:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def sync_without_a_header(port: int) -> grpc.StatusCode | None:
    """Open a stream of Ray's syncer as any user of the machine can, without its node id and without a token.

    Returns how it ended; None if it was answered.
    """
    over = threading.Event()

    def requests():
        yield b""
        over.wait(3)

    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.stream_stream(
            SYNC, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw
        )
        try:
            next(call(requests(), timeout=2))
        except StopIteration:
            return grpc.StatusCode.OK
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]
        finally:
            over.set()
    return None
