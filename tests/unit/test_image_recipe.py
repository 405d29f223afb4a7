"""What can be said about the image without building it; tests/containers builds it and looks inside."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support.processes import REPOSITORY
from tests.support.setting_names import setting_names

DOCKERFILE = (REPOSITORY / "deploy/Dockerfile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def instructions(word: str) -> list[str]:
    """The arguments of every instruction of a kind, in order, lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    return re.findall(rf"^{word} (.*)$", joined, re.MULTILINE)


def test_every_setting_the_image_sets_exists() -> None:
    named = set(re.findall(r"AGGREGATOR_\w+", DOCKERFILE))
    assert "AGGREGATOR_TELEMETRY__REVISION" in named
    assert named <= setting_names()


def test_the_version_on_the_label_is_the_products() -> None:
    assert f"VERSION={PROJECT['project']['version']}" in instructions("ARG")


def test_the_base_image_is_an_argument_with_a_pinned_default() -> None:
    assert re.fullmatch(r"BASE_IMAGE=python:3\.\d+\.\d+-slim-\w+", instructions("ARG")[0])
    assert {one.partition(" AS ")[0] for one in instructions("FROM")} == {"${BASE_IMAGE}"}


def test_the_image_runs_as_a_numbered_user_and_is_asked_for_its_health() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    (health,) = instructions("HEALTHCHECK")
    assert health.endswith('CMD ["aggregator", "health"]')
    assert instructions("ENTRYPOINT") == ['["aggregator"]']


def test_only_hashed_packages_are_installed() -> None:
    for command in re.findall(r"pip install [^;]*", re.sub(r"\\\n\s*", " ", DOCKERFILE)):
        assert "--require-hashes" in command or "--no-deps" in command, command


@pytest.mark.parametrize(
    "name",
    [
        "pyproject.toml",
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"],
    ],
)
def test_what_the_wheel_is_made_of_reaches_the_builder(name: str) -> None:
    assert f"!{name}" in (REPOSITORY / ".dockerignore").read_text().splitlines()
