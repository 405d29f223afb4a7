"""Docker Compose: the plugin, the program, or one built from its Go module."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.containers.engine import Engine, EngineMissing
from tests.containers.stand_ins import cache_directory

_MODULE: Final = "github.com/docker/compose/v2"
# The last of its line that talks to engines of every age.
_VERSION: Final = "v2.40.3"


def compose_command(engine: Engine) -> list[str]:
    """How Compose is called here.

    Raises:
        EngineMissing: it is not installed, and cannot be built.
    """
    built = cache_directory() / f"docker-compose-{_VERSION}"
    for command in (["docker", "compose"], ["docker-compose"], [str(built)]):
        if _is_new_enough(command, engine):
            return command
    if shutil.which("go") is None:
        raise EngineMissing("Docker Compose 2 is not installed, and there is no Go to build it with.")
    _build(built)
    return [str(built)]


def _is_new_enough(command: list[str], engine: Engine) -> bool:
    try:
        done = subprocess.run(
            [*command, "version", "--short"],
            env=engine.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    numbers = done.stdout.strip().removeprefix("v").split(".")
    return done.returncode == 0 and numbers[0].isdigit() and [int(n) for n in numbers[:2]] >= [2, 24]


def _build(target: Path) -> None:
    """By way of a module that needs it: `go install` refuses one with directives of its own."""
    with tempfile.TemporaryDirectory(prefix="aggregator-compose-") as directory:
        Path(directory, "go.mod").write_text(f"module build\n\ngo 1.24\n\nrequire {_MODULE} {_VERSION}\n")
        Path(directory, "tools.go").write_text(
            f'//go:build tools\n\npackage build\n\nimport _ "{_MODULE}/cmd"\n'
        )
        part = target.with_suffix(f".{os.getpid()}")
        linked = f"-s -w -X {_MODULE}/internal.Version={_VERSION}"
        done = subprocess.run(
            ["go", "build", "-mod=mod", "-trimpath", "-ldflags", linked, "-o", str(part), f"{_MODULE}/cmd"],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=2400,
        )
        if done.returncode != 0:
            raise EngineMissing(f"Docker Compose {_VERSION} could not be built: {done.stderr[-500:]}")
        part.rename(target)
