"""A dead HTTP proxy in the environment, for processes that need nothing outside this machine.

Ray asks two cloud providers for their metadata at every start, and no setting prevents that. Its HTTP library
uses a proxy if the environment names one, so Pippin names one that does not exist. A user's reward function
may use the network, so it gets the caller's own variables back.
"""

import json
from collections.abc import Mapping

NOWHERE = "http://127.0.0.1:9"
"""A proxy at the discard port, on which only the superuser could listen."""
LOOPBACK = "127.0.0.1,localhost,::1"
KEPT = "PIPPIN_PROXIES_BEFORE"
"""The variable that keeps the caller's own proxy variables."""
NAMES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")


def sealed(caller: Mapping[str, str]) -> dict[str, str]:
    """Returns the caller's environment with proxies that let HTTP reach the loopback address only."""
    if KEPT in caller:
        return dict(caller)
    before = {name: value for name, value in caller.items() if name.lower() in NAMES}
    kept = {name: value for name, value in caller.items() if name not in before}
    dead = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": LOOPBACK}
    return {**kept, **dead, **{n.upper(): v for n, v in dead.items()}, KEPT: json.dumps(before)}


def unsealed(ours: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with the caller's own proxies in place of the dead one."""
    if KEPT not in ours:
        return dict(ours)
    kept = {n: v for n, v in ours.items() if n.lower() not in NAMES and n != KEPT}
    return {**kept, **json.loads(ours[KEPT])}
