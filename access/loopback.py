"""What protects a process without keys: that only this machine reaches it, and no web page in its browsers.

A page can make a browser send requests to loopback addresses, and by DNS rebinding even read the answers: the
page's own name then resolves to 127.0.0.1. Such requests carry that name as their `Host`, and the page's as
their `Origin`.
"""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or the host of a URL, can only mean this machine. Resolves no names:
    of these only `localhost` is sure."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def host_problem(host: str | None, origin: str | None) -> str | None:
    """Why a request is refused for its `Host` or `Origin`, in a sentence; None if it is not."""
    # Without a Host it comes from no browser.
    if host is not None and not is_loopback(_without_port(host)):
        return (
            "Without keys this process answers requests for localhost only, and this one's `Host` is another."
            " Ask for localhost or 127.0.0.1, or give the process keys (AGGREGATOR_KEYS__PATH)."
        )
    if origin is not None and not _is_ours(origin):
        return (
            "Without keys this process takes no requests from web pages of other origins. Send it from a"
            " program, or give the process keys (AGGREGATOR_KEYS__PATH)."
        )
    return None


def _is_ours(origin: str) -> bool:
    scheme, separator, host = origin.partition("://")
    return bool(separator) and scheme in {"http", "https"} and is_loopback(_without_port(host))


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
