"""The admin API as the command line sees it."""

from __future__ import annotations

import getpass
from types import TracebackType
from typing import Any

import httpx

from cli.key_header import key_header

_UNREACHABLE = (
    "{url} does not answer ({error}). Is that the admin API's address? `aggregator admin` listens on port"
    " 8081 by default, `aggregator dev` on port 8080: name it with --url."
)


class AdminError(Exception):
    """The admin API refused, or could not be reached; the text says what happened and what to do."""


class AdminClient:
    """Asks one admin API, as the operating system's user.

    Every method raises AdminError.

    Args:
        url: its base address.
        key: of a viewer or operator, where the API has keys.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 60.0) -> None:
        self._url = url
        try:
            self._client = httpx.Client(
                base_url=url,
                timeout=timeout,
                headers={b"x-actor": _operator().encode()} | key_header(key),
            )
        except httpx.InvalidURL as error:
            raise AdminError(f"{url!r} is no address: {error}.") from None

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """The answer's document; parameters that are None are left out."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._ask("GET", path, params=given)

    def post(self, path: str, *, json: Any = None, body: bytes | None = None) -> dict[str, Any]:
        """The answer's document.

        Args:
            json: a document to send; or
            body: JSON to send as it is.
        """
        if body is not None:
            return self._ask("POST", path, content=body, headers={"content-type": "application/json"})
        return self._ask("POST", path, json=json)

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, **request)
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise AdminError(_UNREACHABLE.format(url=self._url, error=error)) from None
        try:
            document = answer.json()
        except ValueError:
            document = None
        if answer.is_success and isinstance(document, dict):
            return document
        raise AdminError(_complaint(answer, document))


def _complaint(answer: httpx.Response, document: Any) -> str:
    if not isinstance(document, dict) or "detail" not in document:
        return f"{answer.url} answered {answer.status_code}, and not as an admin API does; look at --url."
    sentence = f"{document['detail']} ({answer.status_code} {document.get('code')})"
    wait = answer.headers.get("retry-after")
    return sentence if wait is None else f"{sentence} Try again in {wait} s."


def _operator() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
    return name[:200] if name.isprintable() else "unknown"
