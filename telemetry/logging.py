"""Logs: structlog on standard error, JSON for machines and columns for people.

Loggers come from `structlog.get_logger("name")`; the standard library's loggers (uvicorn, aiokafka,
SQLAlchemy, alembic) come out through the same renderer with the same fields.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from json import dumps as json_text
from typing import Any, Final

import orjson
import structlog
from structlog.typing import Processor, WrappedLogger

from telemetry.clock import now_text
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
        processors=[_JsonLine(constant, threshold)] if as_json else [*common, _add_logger_name, *rendering],
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


def log_together(name: str, lines: Sequence[tuple[str, EventDict]]) -> None:
    """Log several lines of one logger, and nothing that is bound to the context.

    As JSON they are rendered without the steps that a logger takes for each line, and written in one piece.

    Args:
        lines: level and fields of each; `event` is one of the fields. They are taken over.
    """
    (first, *_) = structlog.get_config()["processors"]
    if isinstance(first, _JsonLine):
        rendered = [first.line(name, level, fields) for level, fields in lines]
        if logged := [line for line in rendered if line is not None]:
            _write("\n".join(logged))
        return
    logger = structlog.get_logger(name)
    for level, fields in lines:
        getattr(logger, level)(fields.pop("event"), **fields)


class _StandardErrorLogger:
    """Writes lines to standard error, whatever that is at the moment."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def msg(self, line: str) -> None:
        _write(line)

    debug = info = warning = error = critical = msg


class _StandardErrorHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _write(self.format(record))


def _write(line: str) -> None:
    # Whoever reads the log may go away; that must not fail what is being logged.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")


class _Columns:
    """Puts the fields everyone looks for first, then those that are the same on every line."""

    def __init__(self, constant: Mapping[str, str]) -> None:
        self._constant = constant

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        first = {name: event.pop(name) for name in ("timestamp", "level", "event", "logger") if name in event}
        return {**first, **self._constant, **event}


class _JsonLine:
    """What the other processors do to a line of ours, in one: each request writes one, and waits for it."""

    def __init__(self, constant: Mapping[str, str], threshold: int) -> None:
        self._constant = constant
        self._threshold = threshold

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        line = self._begun(logger.name, method, event)
        structlog.contextvars.merge_contextvars(logger, method, line)
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)
        line.update(event)
        return _dump(line)

    def line(self, name: str, level: str, event: EventDict) -> str | None:
        """A line with nothing from the context; None if its level is not logged."""
        if _LEVELS[level] < self._threshold:
            return None
        line = self._begun(name, level, event)
        line.update(event)
        return _dump(line)

    def _begun(self, name: str | None, method: str, event: EventDict) -> EventDict:
        line: EventDict = {"timestamp": now_text()}
        structlog.stdlib.add_log_level(None, method, line)
        line["event"] = event.pop("event", "")
        if name is not None:
            line["logger"] = name
        line.update(self._constant)
        return line


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
