"""The Helm chart: what it renders is valid, secure, and what the processes understand."""

from __future__ import annotations

import json
import math
import os
import re
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from broker.settings import KafkaSettings
from cli.main import app
from cli.settings import PREFIX, Settings, load_settings
from db.settings import DatabaseSettings
from stream_worker.settings import WorkerSettings
from tests.support.helm import CHART, NEWEST_KUBERNETES, ChartRefused, lint, of_kind, package, pods, render
from tests.support.processes import REPOSITORY
from tests.support.promql import ALERTS

MINIMAL: dict[str, Any] = {
    "image": {"repository": "registry.example.com:5000/event-aggregator"},
    "kafka": {"bootstrapServers": "broker-1:9092,broker-2:9092"},
    "database": {"existingSecret": "store"},
    "keys": {"existingSecret": "keyring"},
}
SECURE: dict[str, Any] = {
    **MINIMAL,
    "image": {**MINIMAL["image"], "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccount": {"create": False, "name": "events"},
    "listenAddress": "::",
    "database": {"existingSecret": "store", "tls": {"existingSecret": "store-tls"}},
    "kafka": {
        **MINIMAL["kafka"],
        "securityProtocol": "SASL_SSL",
        "saslUsername": "aggregator",
        "saslPassword": {"existingSecret": "kafka-password"},
        "tls": {"existingSecret": "kafka-tls", "certKey": "tls.crt", "keyKey": "tls.key"},
    },
}
EVERYTHING: dict[str, Any] = {
    **SECURE,
    "serviceAccount": {"create": True, "annotations": {"a": "b"}},
    "commonLabels": {"team": "events"},
    "settings": {
        "AGGREGATOR_LOG__LEVEL": "debug",
        "AGGREGATOR_KAFKA__MAX_BUFFER_BYTES": 134217728,
        "AGGREGATOR_DATABASE__POOL_SIZE": 8,
    },
    "gateway": {
        "settings": {
            "AGGREGATOR_INGEST__MAX_EVENTS": 5000,
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318",
        },
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["events.example.com"],
            "tls": [{"secretName": "events-tls", "hosts": ["events.example.com"]}],
        },
        "autoscaling": {"enabled": True},
        "priorityClassName": "high",
    },
    "worker": {
        "settings": {"AGGREGATOR_RETENTION__EVENTS_DAYS": 30, "AGGREGATOR_WORKER__REJECTED_SHARE": 0.5},
        "extraEnv": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "events", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"c": "d"},
        "podLabels": {"e": "f"},
    },
    "topics": {"create": True},
    "keda": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
}
VALUES = {"minimal": MINIMAL, "secure": SECURE, "everything": EVERYTHING}
OPERATORS = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PrometheusRule"}
"""Kinds that operators add; the API of Kubernetes itself does not know them."""
ROLES = {"gateway", "worker", "admin"}
HOW_TO = REPOSITORY / "docs/how-to/kubernetes.md"

each_values = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


def setting_names() -> set[str]:
    page = (REPOSITORY / "docs/reference/settings.md").read_text()
    return set(re.findall(rf"^\| `({PREFIX}\w+)`", page, re.MULTILINE))


def environment(template: dict[str, Any]) -> dict[str, str]:
    (container,) = template["spec"]["containers"]
    return {one["name"]: one.get("value", "") for one in container["env"]}


def grace_seconds(values: dict[str, Any], role: str) -> float:
    spec: dict[str, Any] = of_kind(render(values), "Deployment")[role]["spec"]["template"]["spec"]
    return float(spec["terminationGracePeriodSeconds"])


@each_values
def test_helm_finds_nothing_to_say_against_it(values: dict[str, Any]) -> None:
    assert "0 chart(s) failed" in lint(values)


@pytest.mark.parametrize("kubernetes", ["1.27", NEWEST_KUBERNETES])
@each_values
def test_what_is_rendered_is_valid_for_kubernetes(values: dict[str, Any], kubernetes: str) -> None:
    manifests = render(values, kubernetes)
    checked = [manifest for manifest in manifests if manifest["kind"] not in OPERATORS]
    for manifest in checked:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    assert {"Deployment", "Service", "Job"} <= {manifest["kind"] for manifest in checked}


def test_every_toggle_is_off_unless_set() -> None:
    assert {manifest["kind"] for manifest in render(MINIMAL)} == {
        "Deployment",
        "Job",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    assert {manifest["kind"] for manifest in render(EVERYTHING)} >= {
        *OPERATORS,
        "HorizontalPodAutoscaler",
        "Ingress",
    }


@each_values
def test_each_process_takes_the_environment_it_is_given(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for component, template in pods(render(values)):
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(PREFIX)]:
                patch.delenv(name)
            for name, value in environment(template).items():
                assert not name.startswith(PREFIX) or name.removesuffix("_FILE") in setting_names(), name
                if value.startswith("/"):
                    file = tmp_path / value.lstrip("/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("postgresql://u:p@h/d" if name.startswith(f"{PREFIX}DATABASE__") else "x")
                    value = str(file)
                patch.setenv(name, value)
            settings = load_settings()
            if component != "migration":
                assert settings.require_kafka().bootstrap_servers == values["kafka"]["bootstrapServers"]
            if component in {"worker", "admin", "migration"}:
                assert settings.require_database()
            else:
                assert settings.database is None


def test_numbers_arrive_as_they_were_written() -> None:
    of = {component: environment(template) for component, template in pods(render(EVERYTHING))}
    assert of["gateway"]["AGGREGATOR_KAFKA__MAX_BUFFER_BYTES"] == "134217728"
    assert of["gateway"]["AGGREGATOR_INGEST__MAX_EVENTS"] == "5000"
    assert of["worker"]["AGGREGATOR_WORKER__REJECTED_SHARE"] == "0.5"
    assert "AGGREGATOR_INGEST__MAX_EVENTS" not in of["worker"]
    assert {role for role, given in of.items() if "AGGREGATOR_DATABASE__POOL_SIZE" in given} == {
        "worker",
        "admin",
        "migration",
    }


def test_every_setting_of_the_roles_can_be_given() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    pattern = re.compile(schema["definitions"]["settings"]["propertyNames"]["pattern"])
    elsewhere = (f"{PREFIX}LOCAL_LOG__", f"{PREFIX}CLIENT__")
    refused = {name for name in setting_names() if not pattern.match(name)}
    assert refused == {name for name in setting_names() if name.startswith(elsewhere)}


@each_values
def test_every_command_that_is_run_exists(values: dict[str, Any]) -> None:
    for _, template in pods(render(values)):
        (container,) = template["spec"]["containers"]
        assert container["command"] == ["aggregator"]
        words = [word for word in container["args"] if not word.startswith("--") and not word.isdigit()]
        told = CliRunner().invoke(app, [*words, "--help"])
        assert told.exit_code == 0, words
        for option in (word for word in container["args"] if word.startswith("--")):
            assert option in told.output


@each_values
def test_everything_is_labelled_and_each_selector_finds_its_own_pods(values: dict[str, Any]) -> None:
    manifests = render(values)
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        for name in ("name", "instance", "component", "part-of", "managed-by", "version"):
            assert labels[f"app.kubernetes.io/{name}"], manifest["kind"]
        assert labels["helm.sh/chart"].startswith("event-aggregator-")
        assert labels.items() >= values.get("commonLabels", {}).items()
    templates = dict(pods(manifests))
    for manifest in manifests:
        selector = manifest["spec"].get("selector") if "spec" in manifest else None
        if not selector or manifest["kind"] == "ServiceMonitor":
            continue
        wanted = selector.get("matchLabels", selector).items()
        found = [name for name, pod in templates.items() if pod["metadata"]["labels"].items() >= wanted]
        assert found == [manifest["metadata"]["labels"]["app.kubernetes.io/component"]]


@each_values
def test_every_pod_keeps_to_the_restricted_standard_and_its_file_system(values: dict[str, Any]) -> None:
    for component, template in pods(render(values)):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 10001, component
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {
            "emptyDir",
            "secret",
        }
        assert container["resources"]["limits"]["memory"]


def test_secrets_are_directories_that_follow_updates_and_go_only_where_they_are_needed() -> None:
    expected = {
        "gateway": {"kafka-password", "kafka-tls", "keyring"},
        "worker": {"kafka-password", "kafka-tls", "store", "store-tls"},
        "admin": {"kafka-password", "kafka-tls", "store", "store-tls", "keyring"},
        "migration": {"store", "store-tls"},
        "topics": {"kafka-password", "kafka-tls"},
    }
    for component, template in pods(render(EVERYTHING)):
        volumes = {one["name"]: one["secret"] for one in template["spec"]["volumes"] if "secret" in one}
        assert {one["secretName"] for one in volumes.values()} == expected[component]
        (container,) = template["spec"]["containers"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        files = {
            f"{mounts[name]['mountPath']}/{item['path']}"
            for name, secret in volumes.items()
            for item in secret["items"]
        }
        assert all(mounts[name]["readOnly"] for name in volumes)
        assert not any("subPath" in mount for mount in mounts.values())
        # The certificates of the database are named by its URL.
        named = {value for value in environment(template).values() if value.startswith("/run/")}
        assert files - {"/run/aggregator/database-tls/ca.crt"} == named


@pytest.mark.parametrize(("role", "group"), [("gateway", "INGEST"), ("admin", "ADMIN")])
@pytest.mark.parametrize(("delay", "grace"), [(5, 22), (30.5, 60)])
def test_a_stop_waits_for_the_delay_the_requests_and_what_they_began(
    role: str, group: str, delay: float, grace: float
) -> None:
    values = {**MINIMAL, role: {"drainDelaySeconds": delay, "shutdownGraceSeconds": grace}}
    given = environment(of_kind(render(values), "Deployment")[role]["spec"]["template"])
    assert given[f"AGGREGATOR_{group}__DRAIN_DELAY_SECONDS"] == f"{delay:g}"
    assert given[f"AGGREGATOR_{group}__SHUTDOWN_GRACE_SECONDS"] == f"{grace:g}"
    closing = KafkaSettings(bootstrap_servers="b:1").stop_timeout_seconds
    store = DatabaseSettings.model_validate({"url": "postgresql://h/d"})
    if role == "admin":
        closing += Settings().admin.publish_timeout_seconds
        closing += store.connect_timeout_seconds + store.transaction_timeout_seconds
    assert grace_seconds(values, role) > delay + math.ceil(grace) + closing


def test_a_worker_has_time_to_stop_while_the_log_or_the_store_is_silent() -> None:
    kafka = KafkaSettings(bootstrap_servers="b:1")
    store = DatabaseSettings.model_validate({"url": "postgresql://h/d"})
    transaction = store.connect_timeout_seconds + store.transaction_timeout_seconds
    # It takes its name off the list of workers, and closes its connections.
    leaving = kafka.stop_timeout_seconds + transaction
    silent_store = (
        WorkerSettings().poll_timeout_seconds + transaction + kafka.commit_timeout_seconds + leaving
    )
    silent_log = kafka.request_timeout_seconds + leaving
    assert grace_seconds(MINIMAL, "worker") > max(silent_store, silent_log) + 10


@pytest.mark.parametrize("stall", [120, 300.5])
def test_a_stuck_worker_may_replace_its_consumer_before_it_is_restarted(stall: float) -> None:
    template = of_kind(render({**MINIMAL, "worker": {"stallSeconds": stall}}), "Deployment")["worker"]["spec"]
    (container,) = template["template"]["spec"]["containers"]
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > stall
    assert environment(template["template"])["AGGREGATOR_WORKER__STALL_SECONDS"] == f"{stall:g}"


def test_probes_ask_the_port_the_process_listens_on() -> None:
    ports = {"gateway": "AGGREGATOR_INGEST", "worker": "AGGREGATOR_WORKER", "admin": "AGGREGATOR_ADMIN"}
    for role, deployment in of_kind(render(MINIMAL), "Deployment").items():
        template = deployment["spec"]["template"]
        (container,) = template["spec"]["containers"]
        assert container["startupProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
        (port,) = container["ports"]
        assert port["name"] == "http"
        assert environment(template)[f"{ports[role]}__PORT"] == str(port["containerPort"])
        assert environment(template)[f"{ports[role]}__HOST"] == "0.0.0.0"


def test_gateways_come_before_others_go_and_workers_go_before_others_come() -> None:
    deployments = of_kind(render(MINIMAL), "Deployment")
    rolling = {role: one["spec"]["strategy"]["rollingUpdate"] for role, one in deployments.items()}
    assert rolling["gateway"] == rolling["admin"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert rolling["worker"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_migration_and_topic_come_before_everything_else_and_need_nothing_of_it() -> None:
    jobs = of_kind(render(EVERYTHING), "Job")
    assert jobs.keys() == {"migration", "topics"}
    for job in jobs.values():
        annotations = job["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert "before-hook-creation" in annotations["helm.sh/hook-delete-policy"]
        # The chart's own service account is made after them.
        assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    (container,) = jobs["migration"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["db", "upgrade"]
    (container,) = jobs["topics"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["topics", "create", "--partitions", "6", "--replication-factor", "3"]


def test_keda_scales_workers_between_one_and_the_number_of_partitions() -> None:
    manifests = render({**EVERYTHING, "kafka": {**EVERYTHING["kafka"], "partitions": 24}})
    scaled = of_kind(manifests, "ScaledObject")["worker"]
    deployment = of_kind(manifests, "Deployment")["worker"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (1, 24)
    (trigger,) = scaled["spec"]["triggers"]
    given = environment(deployment["spec"]["template"])
    assert trigger["type"] == "kafka"
    assert trigger["metadata"]["allowIdleConsumers"] == "false"
    assert trigger["metadata"]["excludePersistentLag"] == "true"
    assert trigger["metadata"]["topic"] == given["AGGREGATOR_KAFKA__TOPIC"]
    assert trigger["metadata"]["consumerGroup"] == given["AGGREGATOR_KAFKA__GROUP_ID"]
    assert trigger["metadata"]["sasl"] == "scram_sha512"
    assert trigger["metadata"]["tls"] == "enable"
    access = of_kind(manifests, "TriggerAuthentication")["worker"]
    assert trigger["authenticationRef"]["name"] == access["metadata"]["name"]
    (username,) = access["spec"]["env"]
    assert given[username["name"]] == "aggregator"
    secrets = {one["parameter"]: (one["name"], one["key"]) for one in access["spec"]["secretTargetRef"]}
    assert secrets == {
        "password": ("kafka-password", "password"),
        "ca": ("kafka-tls", "ca.crt"),
        "cert": ("kafka-tls", "tls.crt"),
        "key": ("kafka-tls", "tls.key"),
    }


def test_gateways_are_counted_by_the_deployment_or_by_the_autoscaler_and_never_by_both() -> None:
    assert of_kind(render(MINIMAL), "Deployment")["gateway"]["spec"]["replicas"] == 2
    manifests = render(EVERYTHING)
    deployment = of_kind(manifests, "Deployment")["gateway"]
    assert "replicas" not in deployment["spec"]
    scaler = of_kind(manifests, "HorizontalPodAutoscaler")["gateway"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_prometheus_finds_every_role_under_the_name_that_alerts_know() -> None:
    manifests = render(EVERYTHING)
    (monitor,) = of_kind(manifests, "ServiceMonitor").values()
    (endpoint,) = monitor["spec"]["endpoints"]
    (naming,) = endpoint["relabelings"]
    assert naming["sourceLabels"] == ["__meta_kubernetes_service_label_app_kubernetes_io_component"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    jobs = set()
    for component, service in of_kind(manifests, "Service").items():
        assert service["metadata"]["labels"].items() >= wanted
        assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]
        jobs.add(naming["replacement"].replace("$1", component))
    assert jobs == set(re.findall(r'up\{job="([^"]+)"', ALERTS.read_text()))


def test_the_alerts_are_those_of_the_repository() -> None:
    (rule,) = of_kind(render(EVERYTHING), "PrometheusRule").values()
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text())
    assert (CHART / "files/alerts.yml").resolve() == ALERTS


def test_the_chart_installs_the_version_it_comes_with() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]


def test_a_packaged_chart_has_the_alerts_with_it(tmp_path: Path) -> None:
    with tarfile.open(package(tmp_path)) as chart:
        packed = chart.extractfile("event-aggregator/files/alerts.yml")
        assert packed is not None
        assert packed.read() == ALERTS.read_bytes()


def test_only_publishing_is_open_to_the_outside() -> None:
    (ingress,) = of_kind(render(EVERYTHING), "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/publish", "Exact")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"gatewy": {}}, "gatewy"),
        ({"worker": {"replica": 3}}, "replica"),
        ({"worker": {"replicas": "3"}}, "/worker/replicas"),
        ({"worker": {"terminationGracePeriodSeconds": 5}}, "/worker/terminationGracePeriodSeconds"),
        ({"gateway": {"replicas": 0}}, "/gateway/replicas"),
        ({"gateway": {"drainDelaySeconds": -1}}, "/gateway/drainDelaySeconds"),
        ({"kafka": {"bootstrapServers": "broker"}}, "/kafka/bootstrapServers"),
        ({"kafka": {"securityProtocol": "TLS"}}, "/kafka/securityProtocol"),
        ({"kafka": {"topic": "a b"}}, "/kafka/topic"),
        ({"kafka": {"partitions": 0}}, "/kafka/partitions"),
        ({"database": {"url": "postgresql://u:p@h/d"}}, "url"),
        ({"image": {"repository": "event-aggregator:latest"}}, "/image/repository"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"settings": {"AGREGATOR_LOG__LEVEL": "debug"}}, "AGREGATOR_LOG__LEVEL"),
        ({"settings": {"AGGREGATOR_LOG__LEVEL": ["debug"]}}, "/settings/AGGREGATOR_LOG__LEVEL"),
        ({"keda": {"minReplicas": 0}}, "/keda/minReplicas"),
        ({"serviceMonitor": {"interval": "often"}}, "/serviceMonitor/interval"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_schema_refuses_a_wrong_value_and_names_it(wrong: dict[str, Any], told: str) -> None:
    (group, value), *_ = wrong.items()
    with pytest.raises(ChartRefused, match=re.escape(told)):
        render({**MINIMAL, group: {**MINIMAL.get(group, {}), **value}})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image": {}}, "image.repository is not set"),
        ({"kafka": {}}, "kafka.bootstrapServers is not set"),
        ({"database": {}}, "database.existingSecret is not set"),
        ({"keys": {}}, "keys.existingSecret is not set"),
        ({"worker": {"replicas": 7}}, "worker.replicas (7) is more than kafka.partitions (6)"),
        (
            {"keda": {"enabled": True, "maxReplicas": 7}},
            "keda.maxReplicas (7) is more than kafka.partitions (6)",
        ),
        (
            {"kafka": {**MINIMAL["kafka"], "securityProtocol": "SASL_SSL"}},
            "kafka.saslUsername and kafka.saslPassword.existingSecret have to be set",
        ),
        ({"kafka": {**MINIMAL["kafka"], "saslUsername": "a"}}, "choose SASL_SSL"),
        ({"kafka": {**MINIMAL["kafka"], "tls": {"existingSecret": "a"}}}, "choose SSL or SASL_SSL"),
        ({"kafka": {**MINIMAL["kafka"], "tls": {"certKey": "a"}}}, "set both, or neither"),
        ({"settings": {"AGGREGATOR_KAFKA__TOPIC": "a"}}, "settings has AGGREGATOR_KAFKA__TOPIC"),
        ({"settings": {"AGGREGATOR_DATABASE__URL": "a"}}, "settings has AGGREGATOR_DATABASE__URL"),
        ({"worker": {"settings": {"AGGREGATOR_WORKER__PORT": 1}}}, "settings has AGGREGATOR_WORKER__PORT"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_missing_or_contradicts_itself_is_said_in_a_sentence(
    changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(ChartRefused, match=re.escape(told)):
        render({**MINIMAL, **changed})


def test_the_values_of_the_how_to_render() -> None:
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```$", HOW_TO.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    values: dict[str, Any] = {}
    for block in blocks:
        values |= yaml.safe_load(block)
        assert of_kind(render(values), "Deployment").keys() == ROLES
