"""Ray's processes have no way out of the machine; a user's reward has the one that its caller had."""

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import getproxies_environment, proxy_bypass_environment

import pytest

from ops import ray_environment
from runtime.chat import Ask, Failure
from runtime.endpoint import Client, Endpoint
from runtime.killable import environment
from runtime.proxies import NOWHERE, sealed, unsealed
from runtime.reward_process import RewardCall, RewardProcess
from tests.actors.tiny import settings

CALLERS = {
    "PATH": "/bin", "HTTP_PROXY": "http://proxy.example:3128", "https_proxy": "http://p.example:1",
    "ALL_PROXY": "socks5://p.example:2", "No_Proxy": "example.org",
}  # fmt: skip


def test_http_leads_nowhere_but_to_this_machine(monkeypatch):
    monkeypatch.setattr(os, "environ", sealed(CALLERS))
    proxies = getproxies_environment()
    assert {proxies[kind] for kind in ("http", "https")} == {NOWHERE} and "all" not in proxies
    for host in ("127.0.0.1", "localhost"):
        assert proxy_bypass_environment(host, proxies)
    assert not proxy_bypass_environment("169.254.169.254", proxies)
    assert not proxy_bypass_environment("example.org", proxies)


def test_what_the_caller_had_comes_back_whole():
    assert unsealed(sealed(CALLERS)) == unsealed(sealed(sealed(CALLERS))) == CALLERS
    assert unsealed(CALLERS) == CALLERS
    assert unsealed(sealed({"PATH": "/bin"})) == {"PATH": "/bin"}


def test_foreign_code_has_its_callers_proxies():
    kept = environment(sealed(CALLERS), "root")
    assert {name: kept[name] for name in CALLERS} == CALLERS
    assert NOWHERE not in kept.values()


def test_so_has_a_reward_function_in_a_sealed_process(tmp_path, monkeypatch):
    path = tmp_path / "reward.py"
    path.write_text(
        "import os\n\n\ndef reward(prompt, completion, row):\n"
        "    return float(os.environ.get('HTTP_PROXY') == completion and 'http_proxy' not in os.environ)\n"
    )
    monkeypatch.setattr(os, "environ", sealed({**os.environ, "HTTP_PROXY": "http://p.example:1"}))
    process = RewardProcess(path, timeout_s=10)
    call = RewardCall(prompt="", completion="http://p.example:1", row={})
    try:
        assert process.score([call])[0].reward == 1.0
    finally:
        process.close()


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_: object) -> None:
        pass


def test_an_endpoint_is_reached_whatever_the_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("no_proxy", "")
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with Client(Endpoint(url=url, model="m", attempts=1)) as client:
            outcome = client.ask(Ask(messages=[], key=1, max_tokens=1))
    assert (
        isinstance(outcome, Failure) and "here" not in outcome.kind
    )  # it answered, though no chat
    assert outcome.kind not in ("unreachable", "timed_out")


@pytest.mark.parametrize(
    "name", ["RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_TLS_CA_CERT", "RAY_worker_niceness"]
)
def test_no_variable_of_the_callers_reaches_ray(tmp_path, monkeypatch, name):
    callers = {
        name: "callers",
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN_PATH": "/x",
        "HOME": "/h",
    }
    ours = dict(callers)
    monkeypatch.setattr(ray_environment.os, "environ", ours)
    ray_environment.seal(settings(tmp_path), tmp_path / "token", tmp_path)
    assert "callers" not in ours.values() and ours["HOME"] == "/h"
    assert ours["RAY_AUTH_MODE"] == "token" and ours["RAY_AUTH_TOKEN_PATH"] == str(
        tmp_path / "token"
    )
    assert ours["RAY_USE_TLS"] == "1" and ours["HTTP_PROXY"] == ours["http_proxy"] == NOWHERE
