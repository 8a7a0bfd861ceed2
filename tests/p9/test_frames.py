"""Whole messages through the declarations."""

from __future__ import annotations

import pytest

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import frames


def test_payload_apart_is_not_copied() -> None:
    payload = bytearray(b"12345")
    head = frames.build("Rread", 3, {"count": 5}, payload=False)
    frame = frames.parse(head, payload)
    assert frame.fields["data"] is payload
    assert frames.parse(head + payload).fields == {"count": 5, "data": b"12345"}


def test_payload_of_another_length_is_malformed() -> None:
    head = frames.build("Rread", 3, {"count": 5}, payload=False)
    for payload in (b"", b"1234", b"123456"):
        with pytest.raises(MessageError):
            frames.parse(head, payload)


def test_payload_of_a_message_without_one_is_malformed() -> None:
    with pytest.raises(MessageError):
        frames.parse(frames.build("Rwrite", 3, {"count": 0}), b"")


def test_unknown_messages_are_refused() -> None:
    with pytest.raises(MessageError, match="200"):
        frames.parse(bytes.fromhex("07000000 c8 0100"))
    with pytest.raises(KeyError):
        frames.build("Tcall", 1, {})


def test_fields_must_be_those_declared() -> None:
    with pytest.raises(TypeError, match="fid"):
        frames.build("Tclunk", 1, {})
    with pytest.raises(TypeError, match="fid"):
        frames.build("Tclunk", 1, {"fid": 1, "flags": 0})
    with pytest.raises(ValueError, match="Tclunk"):
        frames.build("Tclunk", 1, {"fid": -1})
    with pytest.raises(ValueError, match="Tclunk"):
        frames.build("Tclunk", 0x10000, {"fid": 1})
    with pytest.raises(ValueError, match="Twrite"):
        frames.build("Twrite", 1, {"fid": 1, "offset": 0, "count": 3, "data": b"1234"})


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(MessageError, match="no header"):
        frames.parse(b"123456")
    with pytest.raises(MessageError, match="2 bytes behind"):
        frames.parse(bytes.fromhex("0d000000 78 0100 01000000 0000"))
    with pytest.raises(MessageError, match="size says 12"):
        frames.parse(bytes.fromhex("0c000000 78 0100 01000000"))
    with pytest.raises(MessageError, match="too short"):
        frames.parse(bytes.fromhex("0a000000 78 0100 010000"))
