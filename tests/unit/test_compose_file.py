"""What can be said about docker-compose.yml without an engine; tests/containers runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from admin_api.settings import AdminSettings
from broker.settings import KafkaSettings
from db.settings import DatabaseSettings
from ingest_api.settings import IngestSettings
from stream_worker.settings import WorkerSettings
from tests.support.processes import REPOSITORY
from tests.support.setting_names import setting_names

COMPOSE: Final = REPOSITORY / "docker-compose.yml"
FILES: Final = [COMPOSE, REPOSITORY / "deploy/Dockerfile", *sorted((REPOSITORY / "deploy/compose").iterdir())]
VARIABLE: Final = re.compile(r"\$\{(\w+):-((?:[^{}]|\{[^}]*\})*)\}")
SERVICES: Final[dict[str, dict[str, Any]]] = yaml.safe_load(VARIABLE.sub(r"\2", COMPOSE.read_text()))[
    "services"
]
ROLES: Final = ("gateway", "worker", "admin")
OURS: Final = {name for name, service in SERVICES.items() if "build" in service}
LASTING: Final = {name for name, service in SERVICES.items() if service.get("restart") == "unless-stopped"}

KAFKA: Final = KafkaSettings(bootstrap_servers="broker:9092")
DATABASE: Final = DatabaseSettings.model_validate({"url": "postgresql://host/name"})


def profile(name: str) -> set[str]:
    return {service for service, made in SERVICES.items() if name in made.get("profiles", [])}


def mounts(service: str) -> dict[str, str]:
    """Where it is in the container, and what it is: a volume, or a path of the repository."""
    return {one.split(":")[1]: one.split(":")[0] for one in SERVICES[service].get("volumes", [])}


def test_the_services_and_their_profiles_are_those_there_should_be() -> None:
    assert profile("observability") == {"prometheus", "grafana"}
    assert profile("loadtest") == {"loadtest"}
    assert profile("tools") == {"cli"}
    assert {name for name, made in SERVICES.items() if "profiles" not in made} == {
        *("secrets", "broker", "postgres", "migrate", "topics"),
        *ROLES,
    }


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(file: Path) -> None:
    named = set(re.findall(r"(?<![A-Z_])AGGREGATOR_\w+", file.read_text()))
    assert named <= setting_names()


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_nothing_secret_is_in_the_repository(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"://[^\s:/]+:[^\s@%]+@", text), "a password in an address"
    for name, value in re.findall(
        r"^\s*([A-Z_]*(?:PASSWORD|SECRET|TOKEN|KEY)\w*)[:=]\s*(.*)$", text, re.MULTILINE
    ):
        assert name.endswith(("_FILE", "__PATH")), f"{name} is set to a value"
        assert value.startswith("/etc/aggregator/"), f"{name}={value}"
    assert not re.search(r"agg_[0-9a-f]{6,}_", text), "a key"


def test_every_image_is_a_variable_with_a_pinned_default() -> None:
    images = re.findall(r"^ +image: (.*)$", COMPOSE.read_text(), re.MULTILINE)
    assert len(images) == 5
    for image in images:
        assert re.fullmatch(r"\$\{\w+_IMAGE:-[\w./-]+:v?\d+\.\d+[\w.-]*\}", image), image


@pytest.mark.parametrize("service", sorted(LASTING))
def test_what_goes_on_says_whether_it_is_healthy_and_has_a_limit(service: str) -> None:
    made = SERVICES[service]
    assert made["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert made["deploy"]["resources"]["limits"]["memory"]
    assert made["logging"]["options"]["max-size"]


def test_a_role_is_asked_at_the_port_it_listens_on() -> None:
    ports = {"gateway": IngestSettings().port, "worker": WorkerSettings().port, "admin": AdminSettings().port}
    for role, port in ports.items():
        assert SERVICES[role]["healthcheck"]["test"][1:] == [
            *("aggregator", "health", "--ready", "--url"),
            f"http://127.0.0.1:{port}",
        ]


def test_what_ends_is_waited_for() -> None:
    # `up --wait` takes a container that has ended for a failure, unless another service waits for its end.
    awaited = {
        name
        for made in SERVICES.values()
        for name, how in made.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert awaited == set(SERVICES) - LASTING - {"loadtest", "cli"}


@pytest.mark.parametrize("service", sorted(OURS))
def test_our_containers_can_do_little(service: str) -> None:
    made = SERVICES[service]
    assert made["read_only"] is True
    assert made["cap_drop"] == ["ALL"]
    assert "cap_add" not in made
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in made, "the image's user, not root"


def test_ports_are_open_to_this_machine_alone_and_can_be_moved() -> None:
    published = [port for made in SERVICES.values() for port in made.get("ports", [])]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert COMPOSE.read_text().count("127.0.0.1:${") == len(published)


def test_there_can_be_any_number_of_workers() -> None:
    assert not {"ports", "container_name", "hostname"} & set(SERVICES["worker"])


def test_a_container_is_not_killed_while_its_process_drains() -> None:
    ingest, admin, worker = IngestSettings(), AdminSettings(), WorkerSettings()
    needed = {
        "gateway": ingest.drain_delay_seconds + ingest.shutdown_grace_seconds + KAFKA.stop_timeout_seconds,
        "worker": worker.poll_timeout_seconds
        + DATABASE.transaction_timeout_seconds
        + KAFKA.commit_timeout_seconds
        + KAFKA.stop_timeout_seconds,
        "admin": admin.drain_delay_seconds + admin.shutdown_grace_seconds + KAFKA.stop_timeout_seconds,
    }
    for role, seconds in needed.items():
        given = re.fullmatch(r"(\d+)s", SERVICES[role]["stop_grace_period"])
        assert given is not None
        assert int(given[1]) > seconds, role


def test_secrets_are_mounted_where_they_are_needed_and_nowhere_else() -> None:
    def with_volume(volume: str) -> set[str]:
        return {service for service in SERVICES if volume in mounts(service).values()}

    assert with_volume("database-secret") == {"secrets", "postgres", "migrate", "worker", "admin", "cli"}
    assert with_volume("keyring") == {"secrets", "gateway", "admin", "cli"}
    assert with_volume("client-keys") == {"secrets", "loadtest", "cli"}
    assert with_volume("grafana-secret") == {"secrets", "grafana"}


def test_what_is_mounted_from_the_repository_is_there_and_read_only() -> None:
    for service, made in SERVICES.items():
        for mount in made.get("volumes", []):
            if mount.startswith("."):
                assert (REPOSITORY / mount.split(":")[0]).exists(), f"{service}: {mount}"
                assert mount.endswith(":ro")


def test_a_volume_of_ours_is_mounted_where_the_image_has_a_directory_for_it() -> None:
    # A new volume takes over the owner of that directory; without one, it would be root's.
    recipe = (REPOSITORY / "deploy/Dockerfile").read_text()
    for place, what in mounts("secrets").items():
        assert what.startswith(".") or re.search(rf"{place}\b", recipe), place


def test_what_stands_in_for_redpanda_is_named_by_variables_that_are_read() -> None:
    given = re.findall(r"^(\w+)=", (REPOSITORY / "deploy/compose/apache-kafka.env").read_text(), re.MULTILINE)
    assert set(given) <= {name for name, _ in VARIABLE.findall(COMPOSE.read_text())}
    assert len(given) == 5
