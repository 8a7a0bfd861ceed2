from __future__ import annotations

import errno
import logging
import os
from typing import Any

import pytest

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.synth.calls import ask, to_bytes


@pytest.mark.parametrize("text", ["ä", b"\xc3\xa4", bytearray(b"\xc3\xa4"), memoryview(b"\xc3\xa4")])
def test_texts(text: Any) -> None:
    assert to_bytes(text) == b"\xc3\xa4"


@pytest.mark.parametrize("text", [None, 5, ["a"], object()])
def test_other_things_are_no_texts(text: Any) -> None:
    with pytest.raises(TypeError, match=type(text).__name__):
        to_bytes(text)


def test_a_value_is_converted() -> None:
    assert ask("x", lambda: "text", to_bytes) == b"text"


def test_its_own_errors_are_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with pytest.raises(OSError, match="busy") as caught:
        ask("x", refuse, to_bytes)
    assert caught.value.errno == errno.EBUSY
    assert not caplog.records


@pytest.mark.parametrize("error", [ValueError("v"), ZeroDivisionError(), OSError("no number"), KeyError("k")])
def test_other_errors_are_logged_and_eio(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def crash() -> None:
        raise error

    with pytest.raises(OSError, match="Input/output") as caught:
        ask("reading status", crash, to_bytes)
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "reading status failed")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_nonsense_is_logged_and_eio(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="Input/output"):
        ask("reading status", lambda: 5, to_bytes)
    assert "TypeError" in caplog.text


def test_answers_that_come_later() -> None:
    later: Completion[Any] = Completion()
    answer = ask("x", lambda: later, to_bytes)
    assert isinstance(answer, Completion)
    assert not answer.done
    later.set_result("text")
    assert answer.result() == b"text"


def test_nonsense_that_comes_later_is_logged_and_eio(caplog: pytest.LogCaptureFixture) -> None:
    later: Completion[Any] = Completion()
    answer = ask("x", lambda: later, to_bytes)
    assert isinstance(answer, Completion)
    later.set_result(None)
    with pytest.raises(OSError, match="Input/output"):
        answer.result()
    assert "TypeError" in caplog.text
