"""The files for Prometheus and Grafana: valid, and alerts that fire when they should and not otherwise."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import REPOSITORY
from tests.support.promql import ALERTS, DASHBOARD, alert_rules, dashboard_uses
from tests.support.skips import unavailable

PROMETHEUS = REPOSITORY / "deploy/prometheus"
RUNBOOKS = sorted((REPOSITORY / "docs/how-to/alerts").glob("*.md"))
PROVISIONING = REPOSITORY / "deploy/grafana/provisioning"


def promtool(*arguments: str, directory: Path = PROMETHEUS) -> str:
    """Run promtool; fails the test, with what it says, unless it is satisfied."""
    program = shutil.which("promtool")
    if program is None:
        unavailable("promtool", "promtool is not on the path; on Debian: apt-get install prometheus")
    done = subprocess.run(
        [program, *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def test_the_alerts_are_valid_and_those_there_should_be() -> None:
    assert "5 rules" in promtool("check", "rules", ALERTS.name)
    assert {rule["alert"] for rule in alert_rules()} == {
        "AggregatorConsumerStalled",
        "AggregatorLagHigh",
        "AggregatorDeadLettersGrowing",
        "AggregatorIngestErrors",
        "AggregatorDown",
    }


def test_each_alert_fires_when_it_should_and_is_silent_when_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_each_alert_is_tried_both_ways() -> None:
    tried = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    expectations = [one for test in tried for one in test["alert_rule_test"]]
    for rule in alert_rules():
        of_rule = [one["exp_alerts"] for one in expectations if one["alertname"] == rule["alert"]]
        assert any(of_rule), rule["alert"]
        assert not all(of_rule), rule["alert"]


def test_each_alert_has_a_page_that_names_it() -> None:
    for rule in alert_rules():
        page = REPOSITORY / rule["annotations"]["runbook_url"]
        assert page.is_file(), page
        assert f"`{rule['alert']}`" in page.read_text()
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_configuration_of_prometheus_is_valid_and_has_the_roles() -> None:
    promtool("check", "config", "--syntax-only", "prometheus.yml")
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in configuration["scrape_configs"]}
    # The alert that a role is missing depends on these names.
    assert jobs == set(re.findall(r'up\{job="([^"]+)"', ALERTS.read_text()))


def test_every_query_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": use.expression.replace("$__rate_interval", "1m")}
        for number, use in enumerate(dashboard_uses())
    ]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules" in promtool("check", "rules", "panels.yml", directory=tmp_path)


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    places: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        covered = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not covered & places, panel["title"]
        assert place["x"] + place["w"] <= 24
        places |= covered
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)


def test_provisioning_names_the_files_where_they_are_mounted() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/aggregator.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


@pytest.mark.parametrize(
    "page", sorted((REPOSITORY / "docs/how-to/alerts").glob("*.md")), ids=lambda p: p.stem
)
def test_a_runbook_says_what_it_means_and_what_to_do(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
    assert headings == ["What it means", "Look", "Do"]
