"""A load balancer as orchestrators have one: it asks who is ready, and takes a moment to notice."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import httpx

from tests.support.tcp_proxy import TcpProxy

_ASKS_EVERY: Final = 0.2
"""Seconds. Kubernetes asks every few; what matters is that it is below the drain delay."""


class Balancer:
    """Forwards each new connection to the first port whose `/readyz` answered 200 when it was last asked.

    Open connections stay where they are until one of their ends closes them.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._proxy = TcpProxy()
        self._proxy.forward_to("127.0.0.1", ports[0])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="balancer", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{self._proxy.address}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._proxy.close()

    def _follow(self) -> None:
        with httpx.Client(timeout=2) as client:
            while not self._stopping.wait(_ASKS_EVERY):
                port = next(filter(lambda port: _is_ready(client, port), self._ports), None)
                if port is not None:
                    self._proxy.forward_to("127.0.0.1", port)


def _is_ready(client: httpx.Client, port: int) -> bool:
    try:
        return client.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False
