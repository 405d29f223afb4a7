"""Images that stand in for those of a registry, made from Debian's packages and Kafka's jars."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.containers.engine import Engine, EngineMissing
from tests.support.kafka_process import KafkaMissing, kafka_jars

_RECIPES: Final = Path(__file__).with_name("stand_in_recipes")
_SUITE: Final = "bookworm"
_MIRROR: Final = "http://deb.debian.org/debian"
_AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")

BASE: Final = f"stand-in/debian:{_SUITE}"
POSTGRES: Final = "stand-in/postgres"
BROKER: Final = "stand-in/broker"
PROMETHEUS: Final = "stand-in/prometheus"


def cache_directory() -> Path:
    """Where what takes long to make is kept from one run to the next."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "event-aggregator"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def make_base(engine: Engine) -> str:
    """A plain Debian with Python, nothing else; the name of the image.

    It trusts the certificate authorities that this machine trusts, which may be more than Debian's.

    Raises:
        EngineMissing: there is no debootstrap, or it failed.
    """
    if not engine.run("images", "--quiet", BASE):
        trust = f"ENV SSL_CERT_FILE={_AUTHORITIES} PIP_CERT={_AUTHORITIES}"
        engine.run("import", "--change", trust, str(_root_file_system()), BASE, timeout=300)
    return BASE


def make_postgres(engine: Engine) -> str:
    """Debian's Postgres, used like the official image."""
    engine.build(_RECIPES / "postgres", POSTGRES, BASE_IMAGE=BASE)
    return POSTGRES


def make_prometheus(engine: Engine) -> str:
    """Debian's Prometheus, used like the official image."""
    engine.build(_RECIPES / "prometheus", PROMETHEUS, BASE_IMAGE=BASE)
    return PROMETHEUS


def make_broker(engine: Engine) -> str:
    """Apache Kafka, used like its official image, and like Redpanda's where testcontainers does.

    Raises:
        EngineMissing: there are no jars.
    """
    try:
        jars = kafka_jars()
    except KafkaMissing as error:
        raise EngineMissing(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="aggregator-broker-") as context:
        shutil.copytree(_RECIPES / "broker", context, dirs_exist_ok=True)
        shutil.copytree(jars, Path(context) / "libs")
        engine.build(Path(context), BROKER, BASE_IMAGE=BASE)
    return BROKER


def _root_file_system() -> Path:
    """Debian as a tar file, made by debootstrap on first use."""
    archive = cache_directory() / f"debian-{_SUITE}-python-{platform.machine()}.tar"
    if archive.exists():
        return archive
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise EngineMissing(
            "there is no debootstrap, or no root to run it; on Debian: apt-get install debootstrap."
        )
    with tempfile.TemporaryDirectory(prefix="aggregator-debian-") as root:
        command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
        done = subprocess.run(
            [*command, _SUITE, root, _MIRROR], capture_output=True, text=True, check=False, timeout=1200
        )
        if done.returncode != 0:
            raise EngineMissing(f"debootstrap failed: {done.stdout[-500:]}")
        shutil.copyfile(_AUTHORITIES, f"{root}{_AUTHORITIES}")
        part = archive.with_suffix(f".{os.getpid()}")
        left_out = ["--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*_*"]
        subprocess.run(["tar", "-C", root, *left_out, "-cf", str(part), "."], check=True, timeout=300)
        part.rename(archive)
    return archive
