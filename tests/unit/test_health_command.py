"""`aggregator health` finds the process to ask, and says with its exit status what came out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import typer

from cli.health import ask, role_addresses
from cli.settings import Settings
from tests.support.processes import free_port


@contextlib.contextmanager
def process(*, ready: bool = True, alive: bool = True) -> Iterator[int]:
    """Something that answers the probes; gives its port."""

    class Probes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = {"/livez": alive, "/readyz": ready}[self.path]
            self.send_response(200 if good else 503)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Probes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def nobody_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("INGEST", "WORKER", "ADMIN"):
        monkeypatch.setenv(f"AGGREGATOR_{role}__PORT", str(free_port()))


def status(url: str | None = None, *, ready: bool = False) -> int:
    try:
        ask(url, ready=ready, timeout=5)
    except typer.Exit as end:
        return end.exit_code
    return 0


@pytest.mark.parametrize("role", ["INGEST", "WORKER", "ADMIN"])
def test_the_one_role_that_listens_is_found_by_its_port(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with process() as port:
        monkeypatch.setenv(f"AGGREGATOR_{role}__PORT", str(port))
        # As in a container, which listens on every address.
        monkeypatch.setenv(f"AGGREGATOR_{role}__HOST", "0.0.0.0")
        assert status() == 0


def test_a_stuck_process_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(alive=False) as port:
        monkeypatch.setenv("AGGREGATOR_WORKER__PORT", str(port))
        assert status() == 1


def test_a_process_can_be_alive_without_being_ready() -> None:
    with process(ready=False) as port:
        assert status(f"http://127.0.0.1:{port}") == 0
        assert status(f"http://127.0.0.1:{port}", ready=True) == 1


def test_where_nothing_listens_it_says_where_it_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert status() == 1
    said = capsys.readouterr().err
    assert said.count("http://127.0.0.1:") == 3
    assert "nothing listens" in said


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with process() as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        assert status(f"http://127.0.0.1:{port}") == 0


def test_a_wildcard_address_is_asked_on_the_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGGREGATOR_INGEST__HOST", "0.0.0.0")
    monkeypatch.setenv("AGGREGATOR_WORKER__HOST", "::")
    monkeypatch.setenv("AGGREGATOR_ADMIN__HOST", "fe80::1")
    for role, port in (("INGEST", 1), ("WORKER", 2), ("ADMIN", 3)):
        monkeypatch.setenv(f"AGGREGATOR_{role}__PORT", str(port))
    assert role_addresses(Settings()) == ["http://127.0.0.1:1", "http://[::1]:2", "http://[fe80::1]:3"]
