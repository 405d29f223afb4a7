"""Which metrics and labels an expression of Prometheus names. Knows as much of the language as we use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import REPOSITORY

DASHBOARD = REPOSITORY / "deploy/grafana/dashboards/aggregator.json"
ALERTS = REPOSITORY / "deploy/prometheus/alerts.yml"
PAGES = [REPOSITORY / "docs/how-to/observe.md", *sorted((REPOSITORY / "docs/how-to/alerts").glob("*.md"))]

OF_PROMETHEUS = frozenset({"job", "instance", "le"})
"""Labels that Prometheus adds, or that every histogram has."""
_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"\{([^}]*)\}")
_RANGE = re.compile(r"\[[^]]*\]")
_NAME = re.compile(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "by", "on"})
_SHOWN = re.compile(r"\{\{\s*(\w+)\s*\}\}|\$labels\.(\w+)")
_OURS = re.compile(r"\b((?:aggregator|http_server)_[a-z_]+)(\{[^}]*\})?")


@dataclass(frozen=True)
class Use:
    """An expression, or a mention, and what it names."""

    where: str
    expression: str
    metrics: frozenset[str]
    labels: frozenset[str]


def use(where: str, expression: str, *, shown: str = "") -> Use:
    """Take an expression apart.

    Args:
        shown: text with `{{label}}` or `$labels.label` in it, shown with the result.
    """
    text = _STRING.sub('""', expression)
    labels = {name for group in _GROUPING.findall(text) for name in re.findall(r"\w+", group)}
    text = _GROUPING.sub(" ", text)
    labels |= {name for body in _SELECTOR.findall(text) for name in re.findall(r"(\w+)\s*[=!]", body)}
    text = _RANGE.sub("", _SELECTOR.sub(" ", text))
    labels |= {legend or template for legend, template in _SHOWN.findall(shown)}
    return Use(where, expression, frozenset(set(_NAME.findall(text)) - _WORDS), frozenset(labels))


def dashboard_uses() -> list[Use]:
    """Every query of the dashboard."""
    document = json.loads(DASHBOARD.read_text())
    return [
        use(f"dashboard: {panel['title']}", target["expr"], shown=target.get("legendFormat", ""))
        for panel in document["panels"]
        for target in panel.get("targets", ())
    ]


def alert_rules() -> list[dict[str, Any]]:
    """Every alert."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alert_uses() -> list[Use]:
    """Every alert's expression, with what its texts show."""
    return [
        use(f"alert: {rule['alert']}", rule["expr"], shown=" ".join(rule["annotations"].values()))
        for rule in alert_rules()
    ]


def page_uses() -> Iterator[Use]:
    """Every metric of ours that the pages about observing name."""
    for page in PAGES:
        for name, selector in _OURS.findall(page.read_text()):
            yield use(str(Path(page).name), name + selector)
