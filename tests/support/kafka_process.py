"""Apache Kafka as processes of the test run: nodes that can be killed, frozen and started again."""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

KAFKA_VERSION: Final = "4.3.1"
TEST_JAVA: Final = ("-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Small and quick to start; not for measuring."""
_POM: Final = Path(__file__).with_name("kafka-pom.xml")
_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy-dependencies"
_LOG4J: Final = """\
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %-5p %c{1}: %m%n
"""


class KafkaMissing(Exception):
    """Apache Kafka cannot be started here; the text says why."""


def kafka_jars(*, timeout: float = 600) -> Path:
    """The directory with Kafka's jars, fetched with Maven on first use. Raises KafkaMissing."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise KafkaMissing(f"`{program}` is not installed (Apache Kafka needs a JDK 17 and Maven).")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "event-aggregator" / f"kafka-{KAFKA_VERSION}"
    lib = home / "lib"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        _lock(lock.fileno(), timeout)
        if list(lib.glob(f"kafka_*-{KAFKA_VERSION}.jar")):
            return lib
        # Maven fills a directory of its own, so that an interrupted download is never taken for a whole one.
        part = home / f"part-{os.getpid()}"
        command = ["mvn", "-q", "-B", "-f", str(_POM), _COPY, "-DincludeScope=runtime"]
        command += [f"-Dkafka.version={KAFKA_VERSION}", f"-DoutputDirectory={part}"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=timeout, text=True)
            part.rename(lib)
        except subprocess.CalledProcessError as error:
            raise KafkaMissing(f"Maven could not fetch Apache Kafka: {error.stdout[-500:]}") from error
        except subprocess.TimeoutExpired as error:
            raise KafkaMissing(f"Maven did not fetch Apache Kafka within {timeout:g} s.") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return lib


def _lock(descriptor: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise KafkaMissing(f"Another run has been fetching Apache Kafka for {timeout:g} s.") from None
            time.sleep(0.2)
        else:
            return


def free_ports(count: int) -> list[int]:
    """TCP ports nobody listens on at the moment, on 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


class KafkaBroker:
    """One node, broker and controller in one process, with its own directory and ports.

    `start` after `kill` or `stop` continues with the same data on the same ports.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int,
        controllers: Mapping[int, int],
        node_id: int = 1,
        cluster_id: str,
        advertised: str | None = None,
        settings: Mapping[str, str] | None = None,
        java: Sequence[str] = TEST_JAVA,
        scram_users: Sequence[str] = (),
    ) -> None:
        """
        Args:
            controllers: the controller port of every node, by node id.
            advertised: `host:port` that clients are told to use, for a proxy in between.
            scram_users: what the storage tool's `--add-scram` takes, one for each.
        """
        self.directory = directory
        self.node_id = node_id
        self.address = f"127.0.0.1:{port}"
        self.log_file = directory / "broker.log"
        self._cluster_id = cluster_id
        self._java = tuple(java)
        self._scram_users = tuple(scram_users)
        self._process: subprocess.Popen[bytes] | None = None
        nodes = len(controllers)
        self._properties = {
            "process.roles": "broker,controller",
            "node.id": str(node_id),
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{p}" for n, p in controllers.items()),
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controllers[node_id]}",
            "advertised.listeners": f"PLAINTEXT://{advertised or self.address}",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(directory / "data"),
            "offsets.topic.replication.factor": str(nodes),
            "transaction.state.log.replication.factor": str(nodes),
            "transaction.state.log.min.isr": str(min(nodes, 2)),
            "share.coordinator.state.topic.replication.factor": str(nodes),
            "share.coordinator.state.topic.min.isr": str(min(nodes, 2)),
            "offsets.topic.num.partitions": "3",
            "transaction.state.log.num.partitions": "3",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            "broker.heartbeat.interval.ms": "500",
            "broker.session.timeout.ms": "3000",
            "log.cleaner.dedupe.buffer.size": "4194304",
            **(settings or {}),
        }

    def start(self, *, timeout: float = 60) -> None:
        """Start and wait until the node answers clients. Raises KafkaMissing with the end of its log.

        In a coroutine call `spawn`, then `wait` in a thread.
        """
        self.spawn()
        self.wait(timeout=timeout)

    def spawn(self) -> None:
        """Start without waiting; a cluster's first nodes only answer once there is a majority.

        Not for threads that end before the tests do: the node is ended with the thread that started it.
        """
        classpath = f"{kafka_jars()}/*"
        file = self.directory / "server.properties"
        log4j = self.directory / "log4j2.properties"
        if not file.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{name}={value}\n" for name, value in self._properties.items()))
            log4j.write_text(_LOG4J)
            format_ = ["java", f"-Dlog4j2.configurationFile={log4j}", "-cp", classpath]
            format_ += ["kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", str(file)]
            for user in self._scram_users:
                format_ += ["--add-scram", user]
            subprocess.run(format_, check=True, capture_output=True, timeout=60)
        command = [*_dies_with_parent(), "java", *self._java, f"-Dlog4j2.configurationFile={log4j}"]
        command += ["-cp", classpath, "kafka.Kafka", str(file)]
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(self.kill)

    def wait(self, *, timeout: float = 60, brokers: int = 1) -> None:
        """Wait until the node answers clients and knows this many brokers."""
        deadline = time.monotonic() + timeout
        while _brokers(self.address) < brokers:
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                end = self.log_file.read_text(errors="replace")[-2_000:]
                self.kill()
                raise KafkaMissing(f"Apache Kafka did not come up at {self.address}. Its log ends:\n{end}")
            time.sleep(0.05)

    def stop(self, *, timeout: float = 30) -> None:
        """Shut down in order."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """`kill -9`. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        atexit.unregister(self.kill)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            # Until each of its threads stands still, one of them may answer yet.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def revive(self) -> None:
        """Let the node run, whatever was done to it before."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self.start()
        else:
            self.resume()
            self.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the broker is not running"
        self._process.send_signal(number)


class KafkaCluster:
    """Nodes that form one cluster; one node unless said otherwise."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        settings: Mapping[str, str] | None = None,
        advertised: Mapping[int, str] | None = None,
        java: Sequence[str] = TEST_JAVA,
    ) -> None:
        """
        Args:
            java: options of each node's virtual machine.
        """
        ports = free_ports(2 * nodes)
        controllers = dict(enumerate(ports[nodes:], start=1))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # The tools take an id that starts with a dash for an option.
        cluster_id = "A" + cluster_id[1:]
        self.brokers = [
            KafkaBroker(
                directory / f"node-{node_id}",
                port=ports[node_id - 1],
                controllers=controllers,
                node_id=node_id,
                cluster_id=cluster_id,
                advertised=(advertised or {}).get(node_id),
                settings=settings,
                java=java,
            )
            for node_id in controllers
        ]

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.address for broker in self.brokers)

    def start(self, *, timeout: float = 90) -> None:
        for broker in self.brokers:
            broker.spawn()
        for broker in self.brokers:
            broker.wait(timeout=timeout, brokers=len(self.brokers))

    def kill(self) -> None:
        for broker in self.brokers:
            broker.kill()

    @contextlib.contextmanager
    def running(self) -> Iterator[KafkaCluster]:
        try:
            self.start()
            yield self
        finally:
            self.kill()


def _dies_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _brokers(address: str) -> int:
    """Brokers in the metadata that the node at `address` answers with; 0 if it does not answer.

    Written out, so that waiting for a broker needs neither an event loop nor the client under test.
    """
    host, _, port = address.rpartition(":")
    # Metadata, version 4: no client id, no topics, no topic creation.
    request = struct.pack(">hhihib", 3, 4, 1, -1, 0, 0)
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(4_096)
    except OSError:
        return 0
    if len(answer) < 16:
        return 0
    (count,) = struct.unpack_from(">i", answer, 12)
    return int(count)
