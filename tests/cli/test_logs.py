from __future__ import annotations

import io
import json
import logging
import sys
from datetime import datetime

import click
import pytest
from click.testing import CliRunner

from pyvirtfs.cli.logs import extra, log_options, logging_to_stderr, p9_tracer, vfio_user_tracer

LOG = logging.getLogger("pyvirtfs.cli.somewhere")


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("text", "info", 0):
        LOG.debug("hidden")
        LOG.info("%d requests", 5, extra=extra(requests=5))
        LOG.warning("odd")
        LOG.error("bad")
    assert capsys.readouterr().err == ("pyvirtfs: 5 requests\npyvirtfs: warning: odd\npyvirtfs: error: bad\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json", "info", 0):
        LOG.info("%d requests\nin %s", 5, "all", extra=extra(requests=5, path=b"x"))
        LOG.error("a bug", exc_info=ZeroDivisionError("oops"))
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "level": "info",
        "logger": "pyvirtfs.cli.somewhere",
        "message": "5 requests\nin all",
        "requests": 5,
        "path": "b'x'",
    }
    assert second["level"] == "error"
    assert second["exception"].endswith("ZeroDivisionError: oops")


def test_everything_is_as_before_behind_the_block() -> None:
    package = logging.getLogger("pyvirtfs")
    before = (package.level, package.propagate, list(package.handlers))
    with logging_to_stderr("text", "error", 2):
        assert not package.propagate
        assert package.level == logging.ERROR
    assert (package.level, package.propagate, list(package.handlers)) == before


@pytest.mark.parametrize(("count", "told"), [(0, ""), (1, "pyvirtfs: tag: Tversion\npyvirtfs: tag: DMA_MAP\n")])
@pytest.mark.parametrize("level", ["error", "debug"])
def test_traces_do_not_depend_on_the_level(
    count: int, told: str, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to_stderr("text", level, count):
        p9_tracer("tag")("Tversion")
        vfio_user_tracer("tag")("DMA_MAP")
    assert capsys.readouterr().err == told


def test_traces_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json", "warning", 1):
        p9_tracer("100%d")("Tversion %s")
    entry = json.loads(capsys.readouterr().err)
    assert (entry["logger"], entry["tag"], entry["message"]) == ("pyvirtfs.trace.9p", "100%d", "100%d: Tversion %s")


def test_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    for stream in (None, Full()):
        monkeypatch.setattr(sys, "stderr", stream)
        with logging_to_stderr("text", "info", 0):
            LOG.info("told to nobody")


def test_options() -> None:
    @click.command
    @log_options("warning")
    def probe(log_format: str, log_level: str, trace: int) -> None:
        click.echo(f"{log_format} {log_level} {trace}")

    run = CliRunner().invoke
    assert run(probe, []).output == "text warning 0\n"
    assert run(probe, ["--trace", "--trace", "--log-format=json", "--log-level", "debug"]).output == "json debug 2\n"
    assert run(probe, ["--log-level", "x"]).exit_code == 2
