"""`aggregator verify` as an operator runs it: beside a running system, of either mode."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Producer

from tests.support.deployment import Deployment
from tests.support.processes import REPOSITORY, aggregator, clean_environment, free_port, wait_ready


def run(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.kafka
@pytest.mark.postgres
def test_a_deployment_is_verified_while_it_works_and_a_lost_row_is_found(
    tmp_path: Path, kafka_bootstrap: str, kafka_topic: str, postgres_url: str
) -> None:
    deployment = Deployment(tmp_path, kafka_bootstrap, kafka_topic, postgres_url)
    with deployment.gateway(), deployment.worker(), deployment.admin():
        deployment.send("--generate", "3000", "--seed", "9", "--duplicates", "0.2")
        assert deployment.verify()["findings"] == []  # With whatever the worker has reached by now.
        producer = Producer({"bootstrap.servers": kafka_bootstrap})
        for number in range(50):
            producer.produce(kafka_topic, b"{" if number % 2 else None, key=b"%d" % number)
        producer.flush(20)
        deployment.settled(3650)
        report = deployment.verify()
        assert report["checked"] == {
            "partitions": 4,
            "records": 3650,
            "events": 3000,
            "events_by_key": 3000,
            "dead_letters": 50,
            "lag": 0,
        }
    assert "Everything agrees." in deployment.run("verify")
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        connection.execute("DELETE FROM dead_letters WHERE id = (SELECT min(id) FROM dead_letters)")
    found = deployment.verify(status=1)["findings_by_check"]
    assert found == {"dead_letter_counter": 1, "record_without_verdict": 1, "log_counter": 1}
    assert deployment.verify("--counts-only", status=1)["findings_by_check"] == {"dead_letter_counter": 1}
    assert "has no dead letter" in deployment.run("verify", status=1)
    deployment.environment["AGGREGATOR_KAFKA__TOPIC"] = "no-such-topic"
    assert "does not exist" in deployment.run("verify", status=2)


def test_a_data_directory_is_verified_while_dev_runs_and_after(tmp_path: Path) -> None:
    data, port = tmp_path / "my data", free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("dev", "--port", str(port), "--data-dir", str(data))
    with aggregator("dev", *command, log=tmp_path / "dev.log") as process:
        wait_ready(process, url)
        run("send", "--generate", "2000", "--duplicates", "0.2", "--url", url)
        assert json.loads(run("verify", "--data-dir", str(data), "--json"))["ok"]
        process.kill()
    with aggregator("dev", *command, log=tmp_path / "dev.log") as process:
        wait_ready(process, url)
        run("send", "--generate", "100", "--url", url)
        process.terminate()
    assert "Everything agrees." in run("verify", "--data-dir", str(data))
    assert "no log.db" in run("verify", "--data-dir", str(tmp_path), status=2)
    assert "KAFKA__BOOTSTRAP_SERVERS is not set" in run("verify", status=2)
