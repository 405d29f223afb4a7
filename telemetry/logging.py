"""Logs: structlog on standard error, JSON for machines and columns for people.

Loggers come from `structlog.get_logger("name")`; the standard library's loggers (uvicorn, aiokafka,
SQLAlchemy, alembic) come out through the same renderer with the same fields.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import sys
from collections.abc import Mapping, MutableMapping
from json import dumps as json_text
from typing import Any, Final

import orjson
import structlog
from structlog.typing import Processor, WrappedLogger

from telemetry.version import product_version

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
# These write a line per request, statement or fetch below this level; our own lines say the same, once.
_QUIETER: Final = {
    "aiokafka": logging.WARNING,
    "alembic": logging.WARNING,
    "asyncio": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    "uvicorn": logging.WARNING,
}

# At debug level these tell what they carry: records, rows, and so payloads.
_NEVER_AT_DEBUG: Final = ("aiokafka.conn", "aiokafka.producer", "sqlalchemy.engine")

EventDict = MutableMapping[str, Any]


def configure_logging(service: str, *, level: str = "info", json: bool | None = None) -> None:
    """Send the logs of the whole process to standard error. Call it once, first thing in a process.

    Args:
        service: the value of `service.name`, such as `aggregator-gateway`.
        level: `debug`, `info`, `warning`, `error` or `critical`. At debug the libraries speak up too,
            but for what would tell payloads.
        json: one JSON object a line; by default exactly when standard error is not a terminal.

    Raises:
        ValueError: there is no such level.
    """
    threshold = _LEVELS.get(level.lower())
    if threshold is None:
        raise ValueError(f"There is no log level {level!r}; use one of {', '.join(_LEVELS)}.")
    as_json = not sys.stderr.isatty() if json is None else json
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    constant = {"service.name": service, "service.version": product_version()} if as_json else {}
    rendering: list[Processor] = [_Columns(constant)]
    if as_json:
        rendering += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dump)]
    else:
        rendering += [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,
            )
        ]
    structlog.configure(
        processors=[_JsonLine(constant)] if as_json else [*common, _add_logger_name, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_StandardErrorLogger,
        cache_logger_on_first_use=True,
    )
    foreign: list[Processor] = [
        *common,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(allow=()),
    ]
    _redirect_standard_library(foreign, rendering, threshold)


class _StandardErrorLogger:
    """Writes lines to standard error, whatever that is at the moment."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def msg(self, line: str) -> None:
        # Whoever reads the log may go away; that must not fail the request being logged.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = msg


class _StandardErrorHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(self.format(record) + "\n")


class _Columns:
    """Puts the fields everyone looks for first, then those that are the same on every line."""

    def __init__(self, constant: Mapping[str, str]) -> None:
        self._constant = constant

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        first = {name: event.pop(name) for name in ("timestamp", "level", "event", "logger") if name in event}
        return {**first, **self._constant, **event}


class _JsonLine:
    """What the other processors do to a line of ours, in one: each request writes one, and waits for it."""

    def __init__(self, constant: Mapping[str, str]) -> None:
        self._constant = constant

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        line: EventDict = {
            "timestamp": dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        }
        structlog.stdlib.add_log_level(logger, method, line)
        line["event"] = event.pop("event", "")
        if logger.name is not None:
            line["logger"] = logger.name
        line.update(self._constant)
        structlog.contextvars.merge_contextvars(logger, method, line)
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)
        line.update(event)
        return _dump(line)


def _add_logger_name(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if logger.name is not None:
        event["logger"] = logger.name
    return event


def _redirect_standard_library(foreign: list[Processor], rendering: list[Processor], threshold: int) -> None:
    handler = _StandardErrorHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=foreign,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name, level in _QUIETER.items():
        logging.getLogger(name).setLevel(threshold if threshold <= logging.DEBUG else max(level, threshold))
    for name in _NEVER_AT_DEBUG:
        logging.getLogger(name).setLevel(max(logging.getLogger(name).getEffectiveLevel(), logging.INFO))
    # One line per request is ours (telemetry.http), with the fields that uvicorn's lacks.
    access = logging.getLogger("uvicorn.access")
    access.handlers[:] = []
    access.propagate = False
    logging.captureWarnings(True)


def _dump(event: EventDict, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, orjson.JSONEncodeError):
        # Lone surrogates and integers beyond 64 bits; a line must never be what fails.
        return json_text(event, default=str, skipkeys=True)
