"""The configuration is refused as a whole, in sentences, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.settings import SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("AGGREGATOR_"):
            monkeypatch.delenv(name)


def test_nothing_has_to_be_set() -> None:
    settings = load_settings()
    assert settings.kafka is None
    assert settings.ingest.port == 8080


def test_nested_names_reach_their_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS", "a:1,b:2")
    monkeypatch.setenv("AGGREGATOR_WORKER__MAX_BATCH_RECORDS", "7")
    settings = load_settings()
    assert settings.require_kafka().bootstrap_servers == "a:1,b:2"
    assert settings.worker.max_batch_records == 7


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AGGREGATOR_KAFAK__TOPIC", "x", "Unknown setting(s) AGGREGATOR_KAFAK__TOPIC"),
        ("AGGREGATOR_WORKER__BATCH", "1", "AGGREGATOR_WORKER__BATCH is not a setting"),
        (
            "AGGREGATOR_WORKER__MAX_BATCH_RECORDS",
            "0",
            "AGGREGATOR_WORKER__MAX_BATCH_RECORDS: Input should be",
        ),
        (
            "AGGREGATOR_WORKER__MAX_BATCH_RECORDS",
            "many",
            "AGGREGATOR_WORKER__MAX_BATCH_RECORDS: Input should be",
        ),
        ("AGGREGATOR_KAFKA__TOPIC", "x", "AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS is not set"),
        ("AGGREGATOR_DATABASE__URL", "mysql://secret@host/x", "AGGREGATOR_DATABASE__URL"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refusal:
        load_settings()
    assert told in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_a_secret_can_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://user:hidden@host/name\n")
    monkeypatch.setenv("AGGREGATOR_DATABASE__URL_FILE", str(secret))
    database = load_settings().require_database()
    assert database.url.get_secret_value().endswith("user:hidden@host/name")
    assert "hidden" not in repr(database)


def test_a_value_and_a_file_for_it_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGGREGATOR_DATABASE__URL", "postgresql://host/name")
    monkeypatch.setenv("AGGREGATOR_DATABASE__URL_FILE", str(tmp_path / "url"))
    with pytest.raises(SettingsError, match="remove one of them"):
        load_settings()


def test_a_missing_secret_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGGREGATOR_DATABASE__URL_FILE", str(tmp_path / "absent"))
    with pytest.raises(SettingsError, match="AGGREGATOR_DATABASE__URL_FILE names a file that cannot be read"):
        load_settings()


def test_a_production_role_without_addresses_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    with pytest.raises(SettingsError, match="AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS is not set"):
        settings.require_kafka()
    with pytest.raises(SettingsError, match="AGGREGATOR_DATABASE__URL is not set"):
        settings.require_database()
