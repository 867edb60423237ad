"""A way out that leads nowhere, for processes that have no business outside this machine.

Ray asks two cloud providers for their metadata at every start, and no setting keeps it from that. Its HTTP
library goes through a proxy where the environment names one, so we name one that is not there. A user's
reward function may well go to the network: it gets its caller's own variables back.
"""

import json
from collections.abc import Mapping

NOWHERE = "http://127.0.0.1:9"
"""The discard port, which only the superuser could listen on."""
LOOPBACK = "127.0.0.1,localhost,::1"
KEPT = "PIPPIN_PROXIES_BEFORE"
"""The variable that keeps what the caller had."""
NAMES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")


def sealed(caller: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment in which HTTP leads nowhere but to the loopback address."""
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
