"""The image: small, unprivileged, read-only, labelled, and the same for every role."""

from __future__ import annotations

import json

import pytest

from tests.containers.engine import Engine
from tests.support.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

OWN_BYTES = 200 * 1000 * 1000
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
STALE_BYTECODE = """
import importlib.util, pathlib, struct, sys
for source in pathlib.Path(sys.prefix, "lib").rglob("*.py"):
    compiled = pathlib.Path(importlib.util.cache_from_source(source))
    if not compiled.exists():
        print("not compiled:", source)
        continue
    flags, modified, size = struct.unpack("<3I", compiled.read_bytes()[4:16])
    if flags == 0 and (modified, size) != (int(source.stat().st_mtime), source.stat().st_size):
        print("compiled from another version:", source)
"""


def in_image(engine: Engine, image: str, program: str, *arguments: str, stdin: str | None = None) -> str:
    """What a program prints in a container that can do as little as the ones of the deployment."""
    return engine.run(
        "run", "--rm", "--interactive", *HARDENED, "--entrypoint", program, image, *arguments, stdin=stdin
    )


def test_our_own_layers_are_small(engine: Engine, image: str) -> None:
    # In history, what the base consists of comes after everything that was put on it.
    lines = engine.run("history", "--human=false", "--no-trunc", "--format={{json .}}", image).splitlines()
    layers = [json.loads(line) for line in lines]
    first = next(n for n, layer in enumerate(layers) if "groupadd --gid 10001" in layer["CreatedBy"])
    own = sum(int(layer["Size"]) for layer in layers[: first + 1])
    assert 0 < own < OWN_BYTES, f"{own / 1e6:.0f} MB"


def test_it_runs_as_a_user_of_its_own_on_a_read_only_file_system(engine: Engine, image: str) -> None:
    assert in_image(engine, image, "id", "-u").strip() == "10001"
    assert "AGGREGATOR_INGEST__PORT=8080" in engine.run("run", "--rm", *HARDENED, image, "config", "show")


def test_its_user_can_change_nothing_of_the_product(engine: Engine, image: str) -> None:
    assert in_image(engine, image, "find", "/opt/aggregator", "-writable", "-not", "-type", "l") == ""


def test_its_bytecode_is_compiled_from_what_is_there(engine: Engine, image: str) -> None:
    assert in_image(engine, image, "python", "-", stdin=STALE_BYTECODE) == ""


def test_its_labels_and_its_metrics_say_what_it_was_built_from(
    engine: Engine, image: str, revision: str
) -> None:
    configuration = engine.inspect(image)["Config"]
    version = in_image(
        engine, image, "python", "-c", "from telemetry.version import *; print(product_version())"
    )
    assert configuration["Labels"]["org.opencontainers.image.version"] == version.strip()
    assert configuration["Labels"]["org.opencontainers.image.revision"] == revision
    assert f"AGGREGATOR_TELEMETRY__REVISION={revision}" in configuration["Env"]


def test_it_refuses_to_listen_without_keys(engine: Engine, image: str) -> None:
    command = [
        "run",
        "--rm",
        *HARDENED,
        "--env=AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS=nowhere:9092",
        image,
        "gateway",
    ]
    with pytest.raises(AssertionError, match="there are no keys"):
        engine.run(*command)


def test_the_embedded_mode_runs_in_it_and_is_found_healthy(engine: Engine, image: str) -> None:
    name = "aggregator-test-dev"
    options = ["--detach", "--name", name, "--health-interval=1s", "--volume=/var/lib/aggregator"]
    engine.run("run", *options, *HARDENED, image, "dev")
    try:
        wait_until(
            lambda: engine.inspect(name)["State"]["Health"]["Status"] == "healthy",
            60,
            "the container healthy",
        )
        engine.run("exec", name, "aggregator", "send", "--generate", "100")
        engine.run("stop", "--time=30", name)
        assert engine.inspect(name)["State"]["ExitCode"] == 0
    finally:
        engine.run("rm", "--force", "--volumes", name)
