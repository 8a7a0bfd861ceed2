"""What commands that run for long tell on the standard error: lines of text, or JSON objects for a log collector."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

_TRACE: Final = logging.getLogger("pyvirtfs.trace")
_P9: Final = logging.getLogger("pyvirtfs.trace.9p")
_VFIO_USER: Final = logging.getLogger("pyvirtfs.trace.vfio-user")


def log_options(level: str) -> Callable[[CommandT], CommandT]:
    """Add the options about logs to a command; it gets `log_format`, `log_level` and `trace`.

    Args:
        level: The one by default.
    """

    def add(command: CommandT) -> CommandT:
        for option in (
            click.option(
                "--log-level",
                type=click.Choice(LEVELS),
                default=level,
                show_default=True,
                help="How much to tell on the standard error.",
            ),
            click.option(
                "--log-format",
                type=click.Choice(FORMATS),
                default=FORMATS[0],
                show_default=True,
                help="Lines of text, or one JSON object in each line.",
            ),
            click.option(
                "--trace", count=True, help="Log each 9P message; given twice, each vfio-user message as well."
            ),
        ):
            command = option(command)
        return command

    return add


def extra(**fields: Any) -> dict[str, Any]:
    """What to give to a logging call as `extra`, to have `fields` in the JSON object."""
    return {"fields": fields}


class _TextFormatter(logging.Formatter):
    """As `main` writes its last words; the level only where something is amiss."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"pyvirtfs: {level}{record.message}"


class _JsonFormatter(logging.Formatter):
    """One object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _Handler(logging.StreamHandler[Any]):
    """Nobody is left to be told if the standard error takes nothing."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        del record


@contextlib.contextmanager
def logging_to_stderr(log_format: str, log_level: str, trace: int) -> Iterator[None]:
    """Inside of the block, what the package logs goes to the standard error; arguments as from `log_options`."""
    package = logging.getLogger("pyvirtfs")
    handler = logging.NullHandler() if sys.stderr is None else _Handler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    before = [(logger, logger.level) for logger in (package, _TRACE)], package.propagate
    package.addHandler(handler)
    package.propagate = False
    package.setLevel(log_level.upper())
    _TRACE.setLevel(logging.DEBUG if trace else logging.CRITICAL)
    try:
        yield
    finally:
        package.removeHandler(handler)
        for logger, level in before[0]:
            logger.setLevel(level)
        package.propagate = before[1]


def p9_tracer(tag: str) -> Callable[[str], None]:
    """Takes a line for each 9P message of a device."""
    return _tracer(_P9, tag)


def vfio_user_tracer(tag: str) -> Callable[[str], None]:
    """Takes a line for each vfio-user message of a device."""
    return _tracer(_VFIO_USER, tag)


def _tracer(logger: logging.Logger, tag: str) -> Callable[[str], None]:
    fields = extra(tag=tag)

    def trace(line: str) -> None:
        logger.debug("%s: %s", tag, line, extra=fields)

    return trace
