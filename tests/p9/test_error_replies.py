"""Errors in each dialect; H140: texts are short, ASCII, and mean the number that they stand for."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.error_replies import TEXT_MAX, TEXTS, linux_error, plain_error, text_of, unix_error

SUBSTITUTED = {errno.ESTALE, errno.EOVERFLOW}
"""Linux's client has no text for these."""


def test_texts_are_those_of_unix_in_no_locale() -> None:
    if os.strerror(errno.EIO) != "Input/output error":
        pytest.skip("this C library has other texts, or a locale is set")
    for code in TEXTS.keys() - SUBSTITUTED:
        assert TEXTS[code] == os.strerror(code).encode()


def test_no_text_means_two_numbers() -> None:
    texts = [TEXTS[code] for code in TEXTS.keys() - SUBSTITUTED]
    assert len(texts) == len(set(texts))
    assert TEXTS[errno.EOVERFLOW] == TEXTS[errno.ERANGE]
    assert TEXTS[errno.ESTALE] not in texts


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOENT, b"No such file or directory"),
        (errno.EACCES, b"Permission denied"),
        (errno.EROFS, b"Read-only file system"),
        (errno.ENOTEMPTY, b"Directory not empty"),
        (errno.EOPNOTSUPP, b"Operation not supported"),
        (errno.ESTALE, b"file has been removed"),
    ],
)
def test_texts_that_clients_compare(code: int, text: bytes) -> None:
    assert text_of(code) == text


@given(st.integers(1, 4095))
def test_every_number_has_a_short_ascii_text(code: int) -> None:
    text = text_of(code)
    assert 0 < len(text) <= TEXT_MAX
    assert text.isascii()
    assert text.decode().isprintable()


def test_long_and_foreign_texts_are_made_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "strerror", lambda code: "Größe " * 100)
    assert text_of(4000) == (b"Gr??e " * 100)[:127]


@given(st.integers(0, 0xFFFF), st.integers(1, 4095), st.integers(13, 200))
def test_errors_never_take_more_than_their_room(tag: int, code: int, room: int) -> None:
    assert codec.LINUX.decode(linux_error(tag, code, 11)) == (c.RLERROR, tag, (code,))
    reply = unix_error(tag, code, room)
    assert len(reply) <= room
    number, got, (text, said) = codec.UNIX.decode(reply)
    assert (number, got, said) == (c.RERROR, tag, code)
    assert text == text_of(code)[: room - 13]
    reply = plain_error(tag, code, room)
    assert len(reply) <= room
    assert codec.PLAIN.decode(reply) == (c.RERROR, tag, (text_of(code)[: room - 9],))
