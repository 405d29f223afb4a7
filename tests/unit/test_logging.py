"""Logs: one renderer for our loggers and the libraries', with the fields operators look for."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from telemetry.clock import now_text
from telemetry.logging import configure_logging, log_together

_CARRIERS = ("aiokafka.conn", "aiokafka.producer", "sqlalchemy.engine")
_TOUCHED = ("uvicorn", "uvicorn.access", "sqlalchemy", "aiokafka", *_CARRIERS)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Put the process-wide configuration back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = [logging.getLogger(name) for name in _TOUCHED]
    levels = [(logger, logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    old = structlog.get_config()
    yield
    structlog.configure(**old)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for logger, logger_level, propagate, logger_handlers in levels:
        logger.setLevel(logger_level)
        logger.propagate = propagate
        logger.handlers[:] = logger_handlers


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_line_has_the_fields_operators_look_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("aggregator-gateway", json=True)
    structlog.get_logger("http").info("request", **{"http.route": "/publish"}, duration_s=0.5)
    (line,) = lines(capsys)
    assert list(line)[:6] == ["timestamp", "level", "event", "logger", "service.name", "service.version"]
    assert (line["event"], line["logger"], line["level"]) == ("request", "http", "info")
    assert (line["service.name"], line["http.route"]) == ("aggregator-gateway", "/publish")
    assert line["timestamp"].endswith("Z")


def test_libraries_come_out_with_the_same_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("aggregator-worker", json=True)
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logging.getLogger("sqlalchemy.pool").warning("pool of %d is empty", 5)
    (line,) = lines(capsys)
    assert (line["event"], line["logger"]) == ("pool of 5 is empty", "sqlalchemy.pool")
    assert (line["service.name"], line["request_id"]) == ("aggregator-worker", "r1")


def test_exception_is_one_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("x", json=True)
    for logger in (structlog.get_logger("ours"), logging.getLogger("theirs")):
        try:
            raise ZeroDivisionError("boom")
        except ZeroDivisionError:
            logger.exception("failed")
    for line in lines(capsys):
        assert "ZeroDivisionError: boom" in line["exception"]
        assert "Traceback" in line["exception"]


def test_lines_logged_together_are_those_a_logger_would_write(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"http.route": "/publish", "duration_s": 0.5}
    configure_logging("aggregator-gateway", json=True)
    structlog.get_logger("http").warning("request", **fields)
    log_together("http", [("warning", {"event": "request", **fields}), ("debug", {"event": "probe"})])
    alone, together = lines(capsys)
    assert list(together) == list(alone)
    assert {**together, "timestamp": None} == {**alone, "timestamp": None}


def test_lines_below_the_level_leave_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("x", json=True)
    log_together("http", [("debug", {"event": "probe"})])
    assert capsys.readouterr().err == ""


def test_lines_logged_together_reach_people_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("x", json=False)
    log_together("http", [("info", {"event": "request", "status": 200}), ("info", {"event": "second"})])
    first, second = capsys.readouterr().err.splitlines()
    assert "status=200" in first
    assert "second" in second


def test_time_in_the_log_is_now_in_utc() -> None:
    before = dt.datetime.now(dt.UTC)
    text = now_text()
    after = dt.datetime.now(dt.UTC)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert before <= dt.datetime.fromisoformat(text) <= after


def test_values_json_cannot_hold_do_not_fail_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("x", json=True)
    structlog.get_logger("x").info("odd \ud800", number=2**70, thing=object(), raw=b"\xff")
    (line,) = lines(capsys)
    assert line["number"] == 2**70


def test_level_holds_for_ours_and_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("x", json=True, level="warning")
    structlog.get_logger("x").info("quiet")
    logging.getLogger("x").info("quiet")
    structlog.get_logger("x").warning("loud")
    logging.getLogger("x").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud", "loud"]


def test_access_log_of_uvicorn_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("x", json=True, level="debug")
    logging.getLogger("uvicorn.access").info("GET / 200")
    assert lines(capsys) == []


def test_not_a_terminal_means_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("x")
    structlog.get_logger("x").info("hello")
    assert lines(capsys)[0]["event"] == "hello"


def test_people_get_a_line_without_what_never_changes(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("aggregator-dev", json=False)
    structlog.get_logger("http").info("request", status=200)
    text = capsys.readouterr().err
    assert "request" in text
    assert "status=200" in text
    assert "aggregator-dev" not in text


def test_unknown_level_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no log level 'loud'; use one of debug, info"):
        configure_logging("x", level="loud")


def test_reader_of_the_log_may_go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return False

    configure_logging("x", json=True)
    monkeypatch.setattr("sys.stderr", Gone())
    structlog.get_logger("x").info("nobody reads this")
    logging.getLogger("x").warning("nor this")


@pytest.mark.parametrize("name", _CARRIERS)
def test_libraries_that_would_tell_payloads_at_debug_level_do_not(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    configure_logging("x", json=True, level="debug")
    logging.getLogger(name).debug("Row %r", ("payload",))
    logging.getLogger("aiokafka").debug("rejoining")
    assert [line["event"] for line in lines(capsys)] == ["rejoining"]
