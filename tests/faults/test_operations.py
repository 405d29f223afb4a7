"""What operators do to a live system: backup and restore, a rolling upgrade of the schema."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from alembic.config import Config

from alembic import command
from db.engine import open_engine
from db.migrations import REVISIONS, directory
from db.settings import DatabaseSettings
from tests.faults.stage import Stage
from tests.support.archives import unpack
from tests.support.balancer import Balancer
from tests.support.deployment import Deployment
from tests.support.ledger import Outcome
from tests.support.postgres import create_database
from tests.support.processes import REPOSITORY, Process, free_port, wait_ready
from tests.support.skips import unavailable

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.postgres]


def test_backup_of_a_live_system_restored_elsewhere_catches_up_and_counts_exactly(
    stage: Stage, tmp_path: Path
) -> None:
    workers = stage.start()
    stage.load.wait_for(400)
    stage.inject("pg_dump while workers write; everything stored later is lost with the server; restore")
    dump = tmp_path / "backup.dump"
    tools = stage.database.server.binaries
    run(tools / "pg_dump", "--format=custom", f"--file={dump}", f"--dbname={stage.database_url}")
    at_backup = stage.stats()["received"]
    stage.load.wait_for(400)
    stage.finish()
    before = stage.stats()
    for process in (*workers, stage.admin):
        process.terminate()

    restored_url = create_database(stage.database.server.url, f"restored_{os.getpid()}")
    run(tools / "pg_restore", "--exit-on-error", f"--dbname={restored_url}", str(dump))
    restored = Deployment(tmp_path, stage.brokers.bootstrap, stage.topic, restored_url)
    restored.environment["AGGREGATOR_KAFKA__GROUP_ID"] = stage.deployment.environment[
        "AGGREGATOR_KAFKA__GROUP_ID"
    ]
    restored.run("db", "check")
    # The group had committed further than the backup goes: the position in the database is what counts.
    assert "commit_beyond_position" in restored.verify(status=1)["findings_by_check"]
    with restored.admin(), restored.worker():
        assert restored.stats()["received"] <= before["received"]
        after = restored.settled(before["received"])
    counters = ("received", "unique_processed", "duplicate_dropped", "conflicting", "dead_lettered")
    assert at_backup < before["received"]
    assert {name: after[name] for name in counters} == {name: before[name] for name in counters}
    restored.verify()
    stage.database.drop(restored_url)


def test_workers_of_the_version_before_go_on_while_and_after_the_schema_is_upgraded(
    stage: Stage, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    unpack_version_before(earlier)
    downgrade(stage.database_url)
    workers = [
        stage.spawn("earlier worker", ["cli", "worker"], stage.deployment.environment, directory=earlier)
        for _ in range(2)
    ]
    stage.inject(
        f"schema upgraded to {REVISIONS[-1]} under workers that know {REVISIONS[-2]}; then they are replaced"
    )
    stage.gateway = stage.role("gateway")
    stage.load.start()
    stage.load.wait_for(400)
    assert stage.recovered() >= 0

    stage.deployment.run("db", "upgrade")
    stage.load.wait_for(400)
    stage.recovered()
    assert [worker.returncode for worker in workers] == [None, None]

    stage.admin = stage.role("admin")
    wait_ready(stage.admin, stage.deployment.admin_url)
    for worker in workers:
        stage.worker()
        assert worker.terminate() == 0
        stage.load.wait_for(200)
        stage.recovered()
    stage.finish()


def test_gateways_and_workers_are_replaced_one_by_one_and_no_request_fails(stage: Stage) -> None:
    ports = [free_port(), free_port()]

    def gateway(port: int) -> Process:
        environment = {
            **stage.deployment.environment,
            "AGGREGATOR_INGEST__PORT": str(port),
            "AGGREGATOR_INGEST__DRAIN_DELAY_SECONDS": "2",
        }
        process = stage.spawn("gateway", ["cli", "gateway"], environment)
        wait_ready(process, f"http://127.0.0.1:{port}", 40)
        return process

    with Balancer(ports) as balancer:
        gateways = [gateway(port) for port in ports]
        stage.deployment.gateway_url = balancer.url
        load = stage.make_load()
        stage.admin = stage.role("admin")
        workers = [stage.worker() for _ in range(2)]
        wait_ready(stage.admin, stage.deployment.admin_url, 40)
        load.start()
        stage.storing()
        stage.inject("both gateways, then both workers, replaced one after the other under load")

        for port, running in zip(ports, gateways, strict=True):
            load.wait_for(200)
            assert running.terminate() == 0
            gateway(port)
        for worker in workers:
            stage.worker()
            load.wait_for(200)
            assert worker.terminate() == 0
            stage.recovered()

        stage.finish()
        assert set(load.statuses()) == {200}
        assert stage.ledger.attempts[Outcome.FAILED] == stage.ledger.attempts[Outcome.UNKNOWN] == 0


def downgrade(url: str) -> None:
    """Take a database's schema back to the version before the newest."""
    engine = open_engine(DatabaseSettings.model_validate({"url": url}), application_name="test")
    config = Config()
    config.set_main_option("script_location", str(directory()))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, REVISIONS[-2])
            connection.commit()
    finally:
        engine.dispose()


def unpack_version_before(target: Path) -> None:
    """The code as it was before the newest migration was added, from the repository's history."""
    added = git(
        "log", "--format=%H", "--diff-filter=A", "--", f"alembic/versions/{REVISIONS[-1]}_*.py"
    ).split()
    archive = git("archive", f"{added[-1].decode()}^") if added else b""
    if not archive:
        unavailable("git", "the code before the newest migration is not to be had: this is no whole clone.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        unpack(packed, target)


def git(*arguments: str) -> bytes:
    """What git prints; nothing if it fails."""
    try:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def run(program: Path, *arguments: str) -> None:
    """Run one of Postgres' own programs."""
    if not program.exists():
        unavailable(
            "pg_dump", f"{program} does not exist: install Debian's postgresql, which has all of them."
        )
    subprocess.run([program, *arguments], check=True, timeout=100)
