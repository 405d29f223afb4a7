"""TLS and SASL to a real broker, TLS to a real server: who is let in, who is trusted, and what is said."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.support.certificates import Authority
from tests.support.kafka_process import KafkaBroker, KafkaMissing, free_ports
from tests.support.postgres import ProcessServer, create_database, own_server
from tests.support.processes import (
    REPOSITORY,
    aggregator,
    clean_environment,
    free_port,
    wait_ready,
    wait_until,
)
from tests.support.skips import unavailable

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

USER = "aggregator"
PASSWORD = "s3cret-of-the-test"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass(frozen=True)
class Broker:
    """A broker with a listener for each way to come in, and what a client has to set for each."""

    ways: Mapping[str, Mapping[str, str]]
    stranger: Path


def listeners(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    directory = tmp_path_factory.mktemp("secure-kafka")
    authority = Authority(directory / "certificates")
    server, client = authority.issue("127.0.0.1"), authority.issue("aggregator@client.test")
    plain, controller, ssl, sasl_ssl, sasl = free_ports(5)
    open_to_clients = {"PLAINTEXT": plain, "SSL": ssl, "SASL_SSL": sasl_ssl, "SASL_PLAINTEXT": sasl}
    settings = {
        "listeners": listeners({**open_to_clients, "CONTROLLER": controller}),
        "advertised.listeners": listeners(open_to_clients),
        "listener.security.protocol.map": ",".join(
            ["CONTROLLER:PLAINTEXT", *(f"{name}:{name}" for name in open_to_clients)]
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(server.both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.root),
        "listener.name.ssl.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
    }
    for listener in ("sasl_ssl", "sasl_plaintext"):
        prefix = f"listener.name.{listener}"
        settings[f"{prefix}.plain.sasl.jaas.config"] = f'{_PLAIN} user_{USER}="{PASSWORD}";'
        for mechanism in ("scram-sha-256", "scram-sha-512"):
            settings[f"{prefix}.{mechanism}.sasl.jaas.config"] = _SCRAM
    node = KafkaBroker(
        directory / "node",
        port=plain,
        controllers={1: controller},
        cluster_id="AsecureBrokerOfTests00",
        settings=settings,
        scram_users=[f"SCRAM-SHA-{n}=[name={USER},password={PASSWORD}]" for n in (256, 512)],
    )
    try:
        node.start(timeout=90)
    except KafkaMissing as error:
        unavailable("kafka", str(error))

    def way(protocol: str, **others: str) -> dict[str, str]:
        settings = {"bootstrap_servers": f"127.0.0.1:{open_to_clients[protocol]}", **others}
        settings["security_protocol"] = protocol
        return {f"AGGREGATOR_KAFKA__{name.upper()}": value for name, value in settings.items()}

    def sasl_way(protocol: str, mechanism: str, **others: str) -> dict[str, str]:
        return way(protocol, sasl_mechanism=mechanism, sasl_username=USER, sasl_password=PASSWORD, **others)

    root = str(authority.root)
    try:
        yield Broker(
            {
                "SSL": way(
                    "SSL", ssl_cafile=root, ssl_certfile=str(client.chain), ssl_keyfile=str(client.key)
                ),
                "PLAIN": sasl_way("SASL_SSL", "PLAIN", ssl_cafile=root),
                "SCRAM-SHA-256": sasl_way("SASL_SSL", "SCRAM-SHA-256", ssl_cafile=root),
                "SCRAM-SHA-512": sasl_way("SASL_SSL", "SCRAM-SHA-512", ssl_cafile=root),
                "without TLS": sasl_way("SASL_PLAINTEXT", "SCRAM-SHA-256"),
            },
            Authority(directory / "stranger").root,
        )
    finally:
        node.kill()


@dataclass(frozen=True)
class Database:
    """A server that takes TLS connections with a password only. `url` has no query yet."""

    url: str
    root: Path
    stranger: Path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    directory = tmp_path_factory.mktemp("secure-postgres")
    authority = Authority(directory)
    certificate = authority.issue("127.0.0.1")
    server = own_server()
    with contextlib.closing(server):
        _guard(server, certificate.chain, certificate.key)
        url = server.url.replace("postgres@", f"{USER}:{PASSWORD}@", 1).replace("/postgres", "/secure")
        yield Database(url, authority.root, Authority(directory / "stranger").root)


def _guard(server: ProcessServer, chain: Path, key: Path) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {USER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        (rules,) = connection.execute("SHOW hba_file").fetchone() or ("",)
    create_database(server.url, "secure")
    data = Path(rules).parent
    owner = data.stat()
    for source, name in ((chain, "server.crt"), (key, "server.key")):
        target = data / name
        shutil.copyfile(source, target)
        target.chmod(0o600)
        os.chown(target, owner.st_uid, owner.st_gid)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET ssl = on")
        Path(rules).write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        connection.execute("SELECT pg_reload_conf()")


def command(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=REPOSITORY,
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert PASSWORD not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("way", ["SSL", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "without TLS"])
def test_every_way_into_kafka_is_open_to_who_may_come_in(broker: Broker, way: str) -> None:
    created = command(broker.ways[way], "topics", "create", "--partitions", "2")
    assert created.returncode == 0, created.stderr
    described = command(broker.ways[way], "topics", "describe", "--json")
    assert described.returncode == 0, described.stderr
    assert json.loads(described.stdout)["partitions"] != []


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_told_in_a_sentence(broker: Broker, way: str) -> None:
    wrong = {**broker.ways[way], "AGGREGATOR_KAFKA__SASL_PASSWORD": "another"}
    done = command(wrong, "topics", "describe")
    assert done.returncode == 1
    assert "sasl_password" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "another" not in done.stderr


def test_a_broker_nobody_we_trust_has_signed_is_not_talked_to(broker: Broker) -> None:
    wary = {**broker.ways["SCRAM-SHA-512"], "AGGREGATOR_KAFKA__SSL_CAFILE": str(broker.stranger)}
    done = command(wary, "topics", "describe")
    assert done.returncode == 1
    assert "cannot be trusted" in done.stderr
    assert "ssl_cafile" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_broker_that_wants_a_client_certificate_gets_one_or_says_so(broker: Broker) -> None:
    without = {
        name: value
        for name, value in broker.ways["SSL"].items()
        if not name.endswith(("SSL_CERTFILE", "SSL_KEYFILE"))
    }
    done = command(without, "topics", "describe")
    assert done.returncode == 1
    assert "ssl_certfile" in done.stderr
    assert done.stderr.count("\n") == 1


def test_events_pass_from_http_to_the_store_with_both_sides_encrypted(
    broker: Broker, database: Database, tmp_path: Path
) -> None:
    query = f"?sslmode=verify-full&sslrootcert={database.root}"
    secret = tmp_path / "database-url"
    secret.write_text(database.url + query + "\n")
    ports = {role: free_port() for role in ("INGEST", "WORKER", "ADMIN")}
    environment = {
        **broker.ways["SCRAM-SHA-512"],
        "AGGREGATOR_DATABASE__URL_FILE": str(secret),
        **{f"AGGREGATOR_{role}__PORT": str(port) for role, port in ports.items()},
    }
    assert command(environment, "topics", "create").returncode == 0
    upgraded = command(environment, "db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    with contextlib.ExitStack() as stack:
        for role, name in (("INGEST", "gateway"), ("WORKER", "worker"), ("ADMIN", "admin")):
            log = tmp_path / f"{name}.log"
            process = stack.enter_context(aggregator(name, name, log=log, environment=environment))
            wait_ready(process, f"http://127.0.0.1:{ports[role]}", timeout=40)
        gateway, admin = (f"http://127.0.0.1:{ports[role]}" for role in ("INGEST", "ADMIN"))
        event = {"topic": "t", "timestamp": "2026-01-01T00:00:00Z", "source": "test", "payload": {}}
        for number in (1, 2, 2):
            answer = httpx.post(f"{gateway}/publish", json={**event, "event_id": str(number)}, timeout=20)
            assert answer.status_code == 200, answer.text

        def stored() -> bool:
            stats = httpx.get(f"{admin}/stats", timeout=10).json()
            return (stats["unique_processed"], stats["duplicate_dropped"]) == (2, 1)

        wait_until(stored, 30, "two stored and one duplicate")
        written = "".join((tmp_path / f"{name}.log").read_text() for name in ("gateway", "worker", "admin"))
    assert PASSWORD not in written
    with psycopg.connect(database.url + query) as connection:
        used = connection.execute(
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = %s",
            (USER,),
        ).fetchone()
    assert used == (True,)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?sslmode=verify-full&sslrootcert={stranger}", "certificate verify failed"),
        ("?sslmode=disable", "no pg_hba.conf entry|no encryption"),
    ],
)
def test_a_database_that_is_not_trusted_or_not_encrypted_is_not_used(
    database: Database, query: str, told: str
) -> None:
    url = database.url + query.replace("{stranger}", str(database.stranger))
    done = command({"AGGREGATOR_DATABASE__URL": url}, "db", "current")
    assert done.returncode == 1
    assert any(one in done.stderr for one in told.split("|")), done.stderr
    assert "Traceback" not in done.stderr
