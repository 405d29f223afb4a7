"""Reading request bodies within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Self

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ingest_api.refusal import Reason, Refused
from ingest_api.settings import IngestSettings

_PIECE_BYTES: Final = 1024 * 1024


class InFlight:
    """The bytes of request bodies held at this moment, bounded over all requests."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0
        self.requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def request(self) -> Reservation:
        """Account for one request while the block runs; gives back all it reserved when it ends."""
        return Reservation(self)

    def begin(self) -> None:
        """A request is in flight."""
        self.requests += 1
        self._idle.clear()

    def end(self, reserved: int) -> None:
        """It is answered; gives back the bytes it reserved."""
        self.bytes -= reserved
        self.requests -= 1
        if not self.requests:
            self._idle.set()

    def require(self, size: int) -> None:
        """Raise Refused (`overloaded`) if that many more bytes do not fit now."""
        if self.bytes + size > self._max_bytes:
            raise Refused(
                Reason.OVERLOADED,
                "The gateway holds as many requests as it may at the moment. Nothing of this request was"
                " accepted; send it again later.",
            )

    async def wait_idle(self) -> None:
        """Return once no request is in flight."""
        await self._idle.wait()


class Reservation:
    """What one request holds of the bytes in flight."""

    __slots__ = ("_in_flight", "bytes")

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self.bytes = 0

    def __enter__(self) -> Self:
        self._in_flight.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._in_flight.end(self.bytes)

    def require(self, size: int) -> None:
        """Raise Refused (`overloaded`) if that many more bytes do not fit now, without reserving them."""
        self._in_flight.require(size)

    def add(self, size: int) -> None:
        """Reserve bytes. Raises Refused (`overloaded`)."""
        self._in_flight.require(size)
        self._in_flight.bytes += size
        self.bytes += size


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], reservation: Reservation, settings: IngestSettings
) -> bytes:
    """The request's body, decompressed where it was sent with gzip.

    The limits hold while it is being read: no more than `max_body_bytes` are kept, whatever the client
    declares, sends in chunks, or hides in compression.

    Raises:
        Refused: unsupported type or encoding, too large, too slow, or no room at the moment.
        ClientDisconnect: nobody is left to answer.
    """
    content_type = headers.get(b"content-type", b"")
    if content_type != b"application/json":
        _check_content_type(content_type.decode("latin-1"))
    encoding = headers.get(b"content-encoding")
    unpack = _Identity() if encoding is None else _decoder(encoding)
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit():
        # True of compressed bodies too: JSON never grows by compression.
        if int(declared) > settings.max_body_bytes:
            raise _too_large(settings.max_body_bytes)
        reservation.require(int(declared))
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(settings.read_timeout_seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                more = message.get("more_body", False)
                for piece in unpack.feed(message.get("body", b"")):
                    if reservation.bytes + len(piece) > settings.max_body_bytes:
                        raise _too_large(settings.max_body_bytes)
                    reservation.add(len(piece))
                    pieces.append(piece)
    except TimeoutError:
        raise Refused(
            Reason.READ_TIMEOUT,
            f"The request body did not arrive within {settings.read_timeout_seconds:g} seconds."
            " Send fewer events per request.",
        ) from None
    unpack.finish()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Identity:
    def feed(self, data: bytes) -> Iterable[bytes]:
        return (data,) if data else ()

    def finish(self) -> None:
        pass


class _Gunzip:
    """Unpacks gzip in pieces of bounded size, so that what is unpacked can be counted before it is kept."""

    def __init__(self) -> None:
        self._unpack = zlib.decompressobj(wbits=31)
        self._fed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._unpack.eof:
                # A gzip file may have several members, one after the other.
                self._unpack = zlib.decompressobj(wbits=31)
            self._fed = True
            try:
                piece = self._unpack.decompress(data, _PIECE_BYTES)
            except zlib.error:
                raise _broken_gzip() from None
            data = self._unpack.unused_data if self._unpack.eof else self._unpack.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> None:
        if self._fed and not self._unpack.eof:
            raise _broken_gzip()


def _decoder(encoding: bytes) -> _Identity | _Gunzip:
    name = encoding.strip().lower()
    if name in {b"identity", b""}:
        return _Identity()
    if name in {b"gzip", b"x-gzip"}:
        return _Gunzip()
    raise Refused(
        Reason.UNSUPPORTED_CONTENT_ENCODING, "Send the body as it is or with content-encoding: gzip."
    )


def _check_content_type(value: str) -> None:
    media_type, _, parameters = value.partition(";")
    if media_type.strip().lower() != "application/json":
        raise Refused(
            Reason.UNSUPPORTED_CONTENT_TYPE,
            "The body must be JSON and say so: add the header content-type: application/json"
            " (curl: -H 'content-type: application/json').",
        )
    for parameter in parameters.split(";"):
        name, _, charset = parameter.partition("=")
        if name.strip().lower() == "charset" and charset.strip(' "').lower() not in {"utf-8", "utf8"}:
            raise Refused(Reason.UNSUPPORTED_CONTENT_TYPE, "The body must be UTF-8, and so must its charset.")


def _too_large(max_bytes: int) -> Refused:
    return Refused(
        Reason.BODY_TOO_LARGE,
        f"The request body is larger than {max_bytes:,} bytes. Send fewer events per request.",
    )


def _broken_gzip() -> Refused:
    return Refused(Reason.INVALID_ENCODING, "The body is not valid gzip, or is cut off.")
