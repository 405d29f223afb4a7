"""The OpenAPI documents, without a running process: for the reference pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from admin_api.app import create_admin_app
from admin_api.dead_letter_office import DeadLetterOffice
from admin_api.health import AdminHealth
from admin_api.log_view import LogView
from admin_api.settings import AdminSettings
from broker.local import LocalLog
from broker.settings import LocalLogSettings
from db.engine import open_engine
from db.queries import StoreQueries
from db.settings import DatabaseSettings
from ingest_api.app import create_gateway_app
from ingest_api.gateway import Gateway
from ingest_api.settings import IngestSettings

# Named, and never opened: describing the routes touches neither log nor store.
_NOWHERE = Path("unused.db")


def gateway_document() -> dict[str, Any]:
    """OpenAPI of the gateway."""
    log = LocalLog(_NOWHERE, LocalLogSettings())
    return create_gateway_app(Gateway(log.producer(), IngestSettings())).openapi()


def admin_document() -> dict[str, Any]:
    """OpenAPI of the admin API."""
    settings = AdminSettings()
    log = LocalLog(_NOWHERE, LocalLogSettings())
    engine = open_engine(
        DatabaseSettings.model_validate({"url": f"sqlite:///{_NOWHERE}"}),
        application_name="openapi",
        read_only=True,
    )
    queries = StoreQueries.of(
        engine, log.topic, timeout=settings.query_timeout_seconds, max_page_bytes=settings.max_page_bytes
    )
    view = LogView(log.admin(), log.topic, timeout=settings.log_timeout_seconds)
    office = DeadLetterOffice(
        engine, log.producer(), queries, view, publish_timeout=settings.publish_timeout_seconds
    )
    return create_admin_app(queries, view, settings, AdminHealth(queries.stats, view), office).openapi()
