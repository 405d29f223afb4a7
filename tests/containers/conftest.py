"""One engine, one set of images and one deployment for all tests with containers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.containers import stand_ins
from tests.containers.compose_command import compose_command
from tests.containers.deployment import ComposeProject
from tests.containers.engine import Engine, EngineMissing, running_engine
from tests.support.processes import REPOSITORY
from tests.support.skips import unavailable

DEFAULT_IMAGES = "AGGREGATOR_TEST_DEFAULT_IMAGES"
"""Set it to use the images that docker-compose.yml names, where a registry can be reached."""
IMAGE = "event-aggregator:test"
KAFKA_ENVIRONMENT = "deploy/compose/apache-kafka.env"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running engine; skips, with the reason, where none can be started."""
    try:
        with running_engine() as engine:
            yield engine
    except EngineMissing as error:
        unavailable("docker", str(error))


@pytest.fixture(scope="session")
def defaults() -> bool:
    """Whether the images are those of docker-compose.yml, and not stand-ins for them."""
    return bool(os.environ.get(DEFAULT_IMAGES))


@pytest.fixture(scope="session")
def base_image(engine: Engine, defaults: bool) -> str | None:
    """A plain Debian with Python, for our image and the stand-ins; None for the Dockerfile's own."""
    try:
        return None if defaults else stand_ins.make_base(engine)
    except EngineMissing as error:
        unavailable("docker", str(error))


@pytest.fixture(scope="session")
def revision() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


@pytest.fixture(scope="session")
def image(engine: Engine, base_image: str | None, revision: str) -> str:
    """Our image, built from this checkout."""
    arguments = {"REVISION": revision} | ({} if base_image is None else {"BASE_IMAGE": base_image})
    engine.build(REPOSITORY, IMAGE, "--file", str(REPOSITORY / "deploy/Dockerfile"), **arguments)
    return IMAGE


@pytest.fixture(scope="session")
def broker_image(engine: Engine, base_image: str | None) -> str | None:
    """A stand-in for Apache Kafka's and Redpanda's images; None for the default."""
    try:
        return None if base_image is None else stand_ins.make_broker(engine)
    except EngineMissing as error:
        unavailable("docker", str(error))


@pytest.fixture(scope="session")
def postgres_image(engine: Engine, base_image: str | None) -> str | None:
    """A stand-in for the official image; None for the default."""
    return None if base_image is None else stand_ins.make_postgres(engine)


@pytest.fixture(scope="session")
def new_project(
    engine: Engine, image: str, broker_image: str | None, postgres_image: str | None
) -> Iterator[ComposeProject]:
    """The deployment before it is started."""
    variables = {"EVENT_AGGREGATOR_IMAGE": image}
    if broker_image is not None and postgres_image is not None:
        variables |= {
            "BROKER_IMAGE": broker_image,
            "POSTGRES_IMAGE": postgres_image,
            "COMPOSE_ENV_FILES": KAFKA_ENVIRONMENT,
        }
    try:
        project = ComposeProject(engine, compose_command(engine), variables)
    except EngineMissing as error:
        unavailable("docker", str(error))
    yield project
    project.close()


@pytest.fixture(scope="session")
def project(new_project: ComposeProject) -> ComposeProject:
    """The deployment, everything healthy."""
    new_project.up()
    return new_project


@pytest.fixture(scope="session")
def operator_key(project: ComposeProject) -> str:
    """The key that was made on the first start."""
    (key,) = project.secrets("clients/operator")
    return key
