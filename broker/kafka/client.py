"""Connections to the Kafka cluster, shared by producer, consumer and admin."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from typing import Any, Final, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from broker.errors import BrokerError, LogMisconfigured, LogUnavailable, TopicMissing
from broker.kafka.connection import LogConnection, lost_transport
from broker.ports import PartitionOffsets
from broker.settings import KafkaSettings

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_METADATA_TIMEOUT: Final = 10.0
"""Seconds given to one broker for metadata, before another is asked: a frozen one must not hide the rest."""
_RETRY_PAUSE: Final = 0.2
_TOPIC_RESOURCE: Final = 2
_EARLIEST: Final = -2
_LATEST: Final = -1
_READ_COMMITTED: Final = 1


class LogClient(AIOKafkaClient):  # type: ignore[misc]
    """aiokafka's client with four differences.

    It says why no bootstrap server can be used. It never asks a broker to create a topic. When no broker it
    knows answers, it goes back to the bootstrap servers, so a cluster that moved meanwhile is found again.
    And its connections are LogConnections.
    """

    async def bootstrap(self) -> None:
        """Raises KafkaError."""
        try:
            with lost_transport():
                await super().bootstrap()
        except KafkaConnectionError as error:
            reason = await self._reason() or error
            raise reason from reason.__cause__

    async def _reason(self) -> KafkaError | None:
        """Why no bootstrap server can be used: aiokafka only logs it. None if one can be by now."""
        reason: KafkaError | None = None
        for host, port, _ in self.hosts:
            try:
                connection = await self._connect(host, port)
            except KafkaError as error:
                reason = error
            except OSError as error:
                reason = KafkaConnectionError(str(error))
                reason.__cause__ = error
            else:
                connection.close()
                return None
            if not isinstance(reason, KafkaConnectionError):
                return reason
        return reason

    async def _get_conn(
        self, node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, no_hint: bool = False
    ) -> AIOKafkaConnection | None:
        try:
            with lost_transport():
                connection = await super()._get_conn(node_id, group=group, no_hint=no_hint)
        except KafkaConnectionError as error:
            _log.info("node %s is not reachable: %s", node_id, error)
            self.force_metadata_update()
            return None
        if connection is not None:
            connection.__class__ = LogConnection
        return connection

    async def _metadata_update(self, cluster_metadata: Any, topics: Collection[str] | None) -> bool:
        request = MetadataRequest(list(topics) if topics else None, allow_auto_topic_creation=False)
        metadata = await self._ask_known(request)
        if metadata is None:
            metadata = await self._ask_bootstrap(request)
        if metadata is None:
            cluster_metadata.failed_update(None)
            return False
        if not metadata.brokers:
            return False
        cluster_metadata.update_metadata(metadata)
        return True

    async def _ask_known(self, request: MetadataRequest) -> Any:
        nodes = [broker.nodeId for broker in self.cluster.brokers()]
        for node in random.sample(nodes, len(nodes)):
            connection = await self._get_conn(node)
            if connection is None:
                continue
            metadata = await _ask(connection, request)
            if metadata is not None:
                return metadata
        return None

    async def _ask_bootstrap(self, request: MetadataRequest) -> Any:
        for host, port, _ in self.hosts:
            try:
                async with asyncio.timeout(_METADATA_TIMEOUT):
                    connection = await self._connect(host, port)
            except (OSError, KafkaError, TimeoutError) as error:
                _log.info("bootstrap server %s:%s is not reachable: %s", host, port, error)
                continue
            try:
                metadata = await _ask(connection, request)
            finally:
                connection.close()
            if metadata is not None:
                return metadata
        return None

    async def _connect(self, host: str, port: int) -> LogConnection:
        connection = LogConnection(
            host,
            port,
            client_id=self._client_id,
            request_timeout_ms=self._request_timeout_ms,
            ssl_context=self._ssl_context,
            security_protocol=self._security_protocol,
            max_idle_ms=self._connections_max_idle_ms,
            sasl_mechanism=self._sasl_mechanism,
            sasl_plain_username=self._sasl_plain_username,
            sasl_plain_password=self._sasl_plain_password,
        )
        await connection.connect()
        return connection


async def _ask(connection: AIOKafkaConnection, request: MetadataRequest) -> Any:
    try:
        async with asyncio.timeout(_METADATA_TIMEOUT):
            return await connection.send(request)
    except (KafkaError, TimeoutError) as error:
        _log.info("no metadata from %s:%s: %r", connection.host, connection.port, error)
        return None


def adopt(client: AIOKafkaClient, topic: str) -> None:
    """Make a client that aiokafka built for itself a LogClient that follows the log topic."""
    client.__class__ = LogClient
    client.set_topics([topic])


def connection_options(settings: KafkaSettings, role: str, *, request_timeout: float) -> dict[str, Any]:
    """The arguments that every aiokafka class takes."""
    password = settings.sasl_password
    context: ssl.SSLContext | None = None
    if settings.security_protocol.endswith("SSL"):
        try:
            context = ssl.create_default_context(cafile=settings.ssl_cafile)
            if settings.ssl_certfile is not None:
                context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
        except OSError as error:
            raise LogMisconfigured(f"The certificate files cannot be read: {error}.") from error
    return {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": f"{settings.client_id}-{role}",
        "metadata_max_age_ms": milliseconds(settings.metadata_max_age_seconds),
        "request_timeout_ms": milliseconds(request_timeout),
        "security_protocol": settings.security_protocol,
        "ssl_context": context,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": password.get_secret_value() if password is not None else None,
    }


def milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


@contextlib.asynccontextmanager
async def translated(settings: KafkaSettings, timeout: float) -> AsyncIterator[None]:
    """Bound a block of calls in time, and turn what aiokafka raises into the errors of the port.

    Raises:
        LogUnavailable, LogMisconfigured, TopicMissing.
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise LogUnavailable(
            f"Kafka at {settings.bootstrap_servers} did not answer within {timeout:g} s."
        ) from None
    except KafkaError as error:
        raise translate(error, settings) from error


def translate(error: KafkaError, settings: KafkaSettings) -> BrokerError:
    """The port's error for an error of aiokafka that says nothing about a single record."""
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return topic_missing(settings.topic)
    if isinstance(error, kafka_errors.SaslAuthenticationFailed):
        return LogMisconfigured(
            f"Kafka refuses this client ({describe(error)}); check sasl_username, sasl_password and"
            f" sasl_mechanism ({settings.sasl_mechanism})."
        )
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return LogMisconfigured(
            f"The certificate of Kafka at {settings.bootstrap_servers} cannot be trusted"
            f" ({error.__cause__.verify_message}); check ssl_cafile, and the names by which the"
            " brokers are addressed."
        )
    refused = (
        kafka_errors.TopicAuthorizationFailedError,
        kafka_errors.GroupAuthorizationFailedError,
        kafka_errors.ClusterAuthorizationFailedError,
        kafka_errors.UnsupportedSaslMechanismError,
        kafka_errors.IllegalSaslStateError,
    )
    if isinstance(error, refused):
        return LogMisconfigured(
            f"Kafka refuses this client ({describe(error)}); check the credentials and their permissions"
            f" on topic {settings.topic!r} and group {settings.group_id!r}."
        )
    hint = ""
    if settings.security_protocol == "SSL" and settings.ssl_certfile is None:
        # With TLS 1.3 the refusal comes after the handshake, and all that is seen is a closed connection.
        hint = " If its brokers want a client certificate, set ssl_certfile and ssl_keyfile."
    return LogUnavailable(
        f"Kafka at {settings.bootstrap_servers} is not available ({describe(error)}).{hint}"
    )


def describe(error: BaseException) -> str:
    """The kind of an error and, where it has one, its text; one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}" if text else name


def topic_missing(topic: str) -> TopicMissing:
    return TopicMissing(f"The log topic {topic!r} does not exist; create it with `aggregator topics create`.")


async def connect(settings: KafkaSettings, role: str) -> LogClient:
    """A connected client. Raises LogUnavailable, LogMisconfigured, in bounded time."""
    client = LogClient(**connection_options(settings, role, request_timeout=settings.request_timeout_seconds))
    try:
        async with translated(settings, settings.start_timeout_seconds):
            await client.bootstrap()
    except BaseException:
        await client.close()
        raise
    return client


async def retried(call: Callable[[], Awaitable[_T]]) -> _T:
    """Call until it succeeds or fails for good; a retry cannot help with a topic that does not exist.

    Has no end of its own: use inside `translated`.
    """
    while True:
        try:
            return await call()
        except KafkaError as error:
            if not error.retriable or isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
                raise
        await asyncio.sleep(_RETRY_PAUSE)


async def fetch_topic(client: LogClient, settings: KafkaSettings) -> dict[int, Any]:
    """The topic's partitions as the cluster describes them now, by number; creates nothing.

    Raises KafkaError (UnknownTopicOrPartitionError if the topic does not exist).
    """
    request = MetadataRequest([settings.topic], allow_auto_topic_creation=False)
    answer = await send_any(client, request)
    for error_code, name, _, partitions in answer.topics:
        if name == settings.topic:
            if error_code:
                raise kafka_errors.for_code(error_code)(settings.topic)
            return {partition: (leader, replicas) for _, partition, leader, replicas, *_ in partitions}
    raise kafka_errors.UnknownTopicOrPartitionError(settings.topic)


async def fetch_topic_settings(client: LogClient, topic: str, names: Iterable[str]) -> dict[str, str]:
    """Settings of the topic by name. Raises KafkaError."""
    request = DescribeConfigsRequest([(_TOPIC_RESOURCE, topic, list(names))])
    answer = await send_any(client, request)
    (resource,) = answer.resources
    error_code, message, _, _, entries = resource
    if error_code:
        raise kafka_errors.for_code(error_code)(message)
    return {entry[0]: entry[1] for entry in entries}


async def fetch_offsets(
    client: LogClient, settings: KafkaSettings, partitions: Iterable[int] | None = None
) -> dict[int, PartitionOffsets]:
    """Beginning and end of partitions (default: all). Raises KafkaError.

    The end is that of committed records: an open transaction's records lie beyond it, as they do for readers.
    """
    leaders = {number: leader for number, (leader, _) in (await fetch_topic(client, settings)).items()}
    wanted = sorted(leaders if partitions is None else partitions)
    by_leader: dict[int, list[int]] = {}
    for partition in wanted:
        leader = leaders.get(partition)
        if leader is None:
            raise kafka_errors.UnknownTopicOrPartitionError(f"partition {partition}")
        if leader < 0:
            raise kafka_errors.LeaderNotAvailableError(f"partition {partition}")
        by_leader.setdefault(leader, []).append(partition)
    beginnings: dict[int, int] = {}
    ends: dict[int, int] = {}
    for leader, numbers in by_leader.items():
        beginnings |= await _offsets_at(client, leader, settings.topic, numbers, _EARLIEST)
        ends |= await _offsets_at(client, leader, settings.topic, numbers, _LATEST)
    return {n: PartitionOffsets(partition=n, beginning=beginnings[n], end=ends[n]) for n in wanted}


async def _offsets_at(
    client: LogClient, leader: int, topic: str, partitions: list[int], where: int
) -> dict[int, int]:
    request = OffsetRequest(-1, _READ_COMMITTED, [(topic, [(number, where) for number in partitions])])
    answer = await client.send(leader, request)
    found: dict[int, int] = {}
    for _, parts in answer.topics:
        for partition, error_code, *rest in parts:
            if error_code:
                client.force_metadata_update()
                raise kafka_errors.for_code(error_code)(f"partition {partition}")
            found[partition] = rest[-1]
    return found


async def send_any(client: LogClient, request: Any, *, controller: bool = False) -> Any:
    """Send to any broker, or to the controller where the cluster names one. Raises KafkaError."""
    leader = client.cluster.controller if controller else None
    nodes = [leader.nodeId] if leader is not None else []
    nodes += [broker.nodeId for broker in client.cluster.brokers() if broker.nodeId not in nodes]
    error: KafkaError = kafka_errors.NodeNotReadyError("no broker is known")
    for node in nodes:
        try:
            return await client.send(node, request)
        except (kafka_errors.NodeNotReadyError, kafka_errors.KafkaConnectionError) as unreachable:
            error = unreachable
    await client.force_metadata_update()
    raise error


async def topic_batch_limit(client: LogClient, settings: KafkaSettings) -> int | None:
    """Bytes of the largest batch the topic takes; None if we may not know. Raises KafkaError."""
    try:
        found = await fetch_topic_settings(client, settings.topic, ["max.message.bytes"])
    except kafka_errors.TopicAuthorizationFailedError:
        _log.warning(
            "not allowed to read the settings of topic %s; its size limit is unchecked", settings.topic
        )
        return None
    return int(found["max.message.bytes"])
