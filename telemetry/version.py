"""Which version runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def product_version() -> str:
    """The version of the installed package; `unknown` where it runs without being installed."""
    try:
        return version("event-aggregator")
    except PackageNotFoundError:
        return "unknown"
