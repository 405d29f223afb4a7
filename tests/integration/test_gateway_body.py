"""The gateway over a real socket: limits of size and time while a body is read, types and encodings."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import pytest

from ingest_api.settings import IngestSettings
from tests.support.gateway import encode, event, head, running, until
from tests.support.http_server import raw_connection

MIB = 1024 * 1024


class TestBody:
    """Limits of size, time, type and encoding."""

    async def test_declared_length_over_the_limit_is_refused_before_the_body_is_sent(self) -> None:
        async with running() as gateway, raw_connection(gateway.server) as connection:
            await connection.send(head(f"content-length: {10 * MIB + 1}", "expect: 100-continue"))
            response = await connection.response()
            assert (response.status, response.json()["code"]) == (413, "body_too_large")
            assert "10,485,760" in response.json()["detail"]

    async def test_body_of_exactly_the_limit_is_read(self) -> None:
        async with running() as gateway:
            body = b"[" + encode(event())
            response = await gateway.publish(body + b" " * (10 * MIB - len(body) - 1) + b"]")
            assert response.status_code == 200

    async def test_chunked_body_over_the_limit_is_refused(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b" " * MIB

        async with running() as gateway:
            response = await gateway.publish(chunks())
            assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
            assert gateway.gateway.in_flight.bytes == 0

    async def test_answer_to_a_body_that_is_refused_unread_reaches_the_client(self) -> None:
        # The rest of the body is read and dropped: closing at once would reset the connection.
        async with running() as gateway:
            for _ in range(5):
                response = await gateway.publish(encode(event()) + b" " * (11 * MIB))
                assert (response.status_code, response.json()["code"]) == (413, "body_too_large")

    async def test_chunked_body_within_the_limit_is_taken(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for byte in encode(event()):
                yield bytes([byte])

        async with running() as gateway:
            assert (await gateway.publish(chunks())).status_code == 200

    async def test_trickled_body_ends_at_the_deadline_with_408_and_a_closed_connection(self) -> None:
        settings = IngestSettings(read_timeout_seconds=0.3)
        async with running(settings=settings) as gateway, raw_connection(gateway.server) as connection:
            await connection.send(head("content-length: 1000") + b"{")
            response = await connection.response()
            assert (response.status, response.json()["code"]) == (408, "read_timeout")
            assert response.headers["connection"] == "close"
            assert await connection.closed_by_peer()
            assert gateway.gateway.in_flight.bytes == 0

    async def test_trickled_head_ends_with_a_closed_connection(self) -> None:
        async with (
            running(header_timeout_seconds=0.3) as gateway,
            raw_connection(gateway.server) as connection,
        ):
            await connection.send(b"POST /publish HTTP/1.1\r\nhost: x\r\n")
            assert await connection.closed_by_peer()

    async def test_silent_connection_is_closed(self) -> None:
        async with (
            running(header_timeout_seconds=0.3) as gateway,
            raw_connection(gateway.server) as connection,
        ):
            assert await connection.closed_by_peer()

    async def test_disconnect_while_sending_gives_back_what_was_reserved(self) -> None:
        async with running() as gateway:
            async with raw_connection(gateway.server) as connection:
                await connection.send(head("content-length: 1000") + b"{" * 500)
                await until(lambda: gateway.gateway.in_flight.bytes == 500)
            await until(lambda: gateway.gateway.in_flight.requests == 0)
            assert gateway.gateway.in_flight.bytes == 0
            assert gateway.producer.calls == 0

    async def test_disconnect_while_publishing_does_not_take_the_events_back(self) -> None:
        async with running() as gateway:
            gateway.producer.gate.clear()
            body = encode(event())
            async with raw_connection(gateway.server) as connection:
                await connection.send(head(f"content-length: {len(body)}") + body)
                await gateway.producer.entered.wait()
            gateway.producer.gate.set()
            await until(lambda: gateway.gateway.in_flight.requests == 0)
            assert len(gateway.producer.records) == 1

    @pytest.mark.parametrize("value", ["application/json", "Application/JSON; charset=UTF-8; x=1"])
    async def test_json_content_types_are_taken(self, value: str) -> None:
        async with running() as gateway:
            response = await gateway.publish(encode(event()), **{"content-type": value})
            assert response.status_code == 200

    @pytest.mark.parametrize(
        "value",
        [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/x-ndjson",
            "application/json; charset=latin-1",
            "",
        ],
    )
    async def test_other_content_types_are_refused_with_the_way_out(self, value: str) -> None:
        async with running() as gateway:
            response = await gateway.publish(encode(event()), **{"content-type": value})
            assert (response.status_code, response.json()["code"]) == (415, "unsupported_content_type")
            assert "-H 'content-type: application/json'" in response.json()["detail"] or "charset" in value

    async def test_gzip_is_unpacked(self) -> None:
        async with running() as gateway:
            for body in (gzip.compress(encode(event())), gzip.compress(b"[") + gzip.compress(b"{}]")):
                await gateway.publish(body, **{"content-encoding": "gzip"})
            assert gateway.producer.records[0].value == encode(event())

    async def test_gzip_that_unpacks_beyond_the_limit_is_refused(self) -> None:
        async with running() as gateway:
            bomb = gzip.compress(b" " * (50 * MIB))
            response = await gateway.publish(bomb, **{"content-encoding": "gzip"})
            assert (response.status_code, response.json()["code"]) == (413, "body_too_large")

    @pytest.mark.parametrize(
        "body",
        [gzip.compress(b"{}")[:-4], b"{}", gzip.compress(b"{}") + b"x"],
        ids=["cut off", "not gzip", "with something behind"],
    )
    async def test_broken_gzip_is_refused(self, body: bytes) -> None:
        async with running() as gateway:
            response = await gateway.publish(body, **{"content-encoding": "gzip"})
            assert (response.status_code, response.json()["code"]) == (400, "invalid_encoding")

    @pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip"])
    async def test_other_encodings_are_refused(self, encoding: str) -> None:
        async with running() as gateway:
            response = await gateway.publish(encode(event()), **{"content-encoding": encoding})
            assert (response.status_code, response.json()["code"]) == (415, "unsupported_content_encoding")
