"""The servers of the fault suite: its own, behind proxies, to be broken at will."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from db.engine import open_engine
from db.migrations import upgrade
from db.settings import DatabaseSettings
from tests.support.kafka_process import KafkaBroker, KafkaCluster
from tests.support.postgres import ProcessServer, create_database, drop_database
from tests.support.tcp_proxy import TcpProxy

PARTITIONS = 4
_TEMPLATE = "fault_template"
_numbers = itertools.count(1)


class Brokers:
    """A Kafka of its own. With one node, every client goes through a proxy: the node advertises its port.

    Attributes:
        bootstrap: what clients are given.
    """

    def __init__(self, directory: Path, *, nodes: int = 1) -> None:
        self.proxy = TcpProxy()
        advertised = {1: self.proxy.address} if nodes == 1 else None
        self.cluster = KafkaCluster(
            directory,
            nodes=nodes,
            advertised=advertised,
            settings={"group.min.session.timeout.ms": "1000", "log.retention.check.interval.ms": "1000"},
        )
        host, _, port = self.node.address.partition(":")
        self.proxy.forward_to(host, int(port))
        self.bootstrap = self.cluster.bootstrap if advertised is None else self.proxy.address
        self.cluster.start()
        self._admin = AdminClient(
            {"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 500}
        )

    @property
    def node(self) -> KafkaBroker:
        return self.cluster.brokers[0]

    @property
    def admin(self) -> AdminClient:
        """A client that is not ours."""
        return self._admin

    def create_topic(
        self, name: str, *, replicas: int = 1, settings: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic, and wait until it is there."""
        topic = NewTopic(name, PARTITIONS, replicas, config=dict(settings or {}))
        self._admin.create_topics([topic], operation_timeout=20)[name].result(30)

    def leaders(self, topic: str) -> dict[int, int]:
        """The node that leads each partition."""
        partitions = self._admin.list_topics(topic, timeout=20).topics[topic].partitions
        return {number: one.leader for number, one in partitions.items()}

    def has_topic(self, name: str) -> bool:
        return name in self._admin.list_topics(timeout=20).topics

    def heal(self) -> None:
        """Whatever a test did, undone."""
        self.proxy.heal()
        for broker in self.cluster.brokers:
            broker.revive()

    def close(self) -> None:
        self.cluster.kill()
        self.proxy.close()


class Database:
    """A Postgres server of its own behind a proxy, and databases on it.

    Attributes:
        direct_url: of the server, past the proxy.
    """

    def __init__(self, server: ProcessServer) -> None:
        self.server = server
        self.proxy = TcpProxy()
        parts = urlsplit(server.url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.proxy.forward_to(parts.hostname, parts.port)
        url = create_database(server.url, _TEMPLATE)
        engine = open_engine(DatabaseSettings.model_validate({"url": url}), application_name="faults")
        try:
            upgrade(engine)
        finally:
            engine.dispose()

    def create(self) -> str:
        """A migrated, empty database; its URL, past the proxy."""
        return create_database(self.server.url, f"faults_{os.getpid()}_{next(_numbers)}", _TEMPLATE)

    def proxied(self, url: str) -> str:
        """The same database through the proxy."""
        parts = urlsplit(url)
        user = f"{parts.username}@" if parts.username else ""
        return urlunsplit(parts._replace(netloc=f"{user}{self.proxy.address}"))

    def drop(self, url: str) -> None:
        drop_database(self.server.url, urlsplit(url).path.lstrip("/"))

    def heal(self) -> None:
        """Whatever a test did, undone."""
        self.proxy.heal()
        if not self.server.running:
            self.server.start()

    def close(self) -> None:
        self.proxy.close()
        self.server.close()
