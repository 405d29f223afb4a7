"""The Helm chart, rendered by helm itself."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.processes import REPOSITORY
from tests.support.skips import unavailable

CHART: Final = REPOSITORY / "deploy/helm/event-aggregator"
RELEASE: Final = "shop"
NEWEST_KUBERNETES: Final = "1.37"
_CACHE: Final = "event-aggregator"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Manifest = dict[str, Any]


class ChartRefused(Exception):
    """helm did not render or lint the chart; the text is what it said."""


def render(values: Mapping[str, Any], kubernetes: str = NEWEST_KUBERNETES) -> list[Manifest]:
    """The manifests that `helm install` with these values would send, hooks included.

    Raises:
        ChartRefused: the values do not fit the schema, or contradict each other.
    """
    output = _with_values(
        json.dumps(values),
        "template",
        RELEASE,
        str(CHART),
        "--namespace",
        "events",
        "--kube-version",
        kubernetes,
    )
    return [manifest for manifest in yaml.load_all(output, Loader=_LOADER) if manifest]


def lint(values: Mapping[str, Any]) -> str:
    """What `helm lint --strict` says, which takes warnings for errors. Raises ChartRefused."""
    return _with_values(
        json.dumps(values), "lint", "--strict", str(CHART), "--kube-version", NEWEST_KUBERNETES
    )


def package(directory: Path) -> Path:
    """The chart as a file, as it is published."""
    done = subprocess.run(
        [program(), "package", str(CHART), "--destination", str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (file,) = directory.glob("*.tgz")
    return file


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Component to manifest, for all of a kind."""
    return {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]: manifest
        for manifest in manifests
        if manifest["kind"] == kind
    }


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Component and pod template of everything that runs."""
    for kind in ("Deployment", "Job"):
        for component, manifest in of_kind(manifests, kind).items():
            yield component, manifest["spec"]["template"]


@functools.cache
def program() -> str:
    """Path of helm: on the search path, or where `.ci/helm` puts the one that it builds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _CACHE
    built = sorted(cache.glob("helm-*/bin/helm"))
    found = shutil.which("helm") or (str(built[-1]) if built else None)
    if found is None:
        unavailable("helm", "helm is not on the path; `.ci/helm` builds one, which takes some minutes, once")
    return found


@functools.cache
def _with_values(values: str, *arguments: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(values)
        file.flush()
        done = subprocess.run(
            [program(), *arguments, "--values", file.name],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    if done.returncode != 0:
        raise ChartRefused(done.stdout + done.stderr)
    return done.stdout
