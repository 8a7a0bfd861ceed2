"""Whole messages through the declarations."""

from __future__ import annotations

from typing import Any

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import frames
from pyvirtfs.p9.messages import DIRECTORY_ENTRY, UNIX

ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "qid": st.fixed_dictionaries(
                {
                    "type": st.integers(0, 2**8 - 1),
                    "version": st.integers(0, 2**32 - 1),
                    "path": st.integers(0, 2**64 - 1),
                }
            ),
            "offset": st.integers(0, 2**64 - 1),
            "type": st.integers(0, 2**8 - 1),
            "name": st.binary(max_size=300),
        }
    )
)


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
    with pytest.raises(MessageError, match=r"9P2000\.u has no message of type 24"):
        frames.parse(frames.build("Tgetattr", 1, {"fid": 1, "request_mask": 0}), vocabulary=UNIX)
    with pytest.raises(KeyError):
        frames.build("Tgetattr", 1, {}, vocabulary=UNIX)


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


@given(ENTRIES, st.integers(0))
def test_directories_are_what_the_declaration_says(entries: list[dict[str, Any]], cut: int) -> None:
    pieces = [DIRECTORY_ENTRY.build(entry) for entry in entries]
    data = b"".join(pieces)
    parsed = construct.GreedyRange(DIRECTORY_ENTRY).parse(data)
    expected = [((one.qid.type, one.qid.version, one.qid.path), one.offset, one.type, one.name) for one in parsed]
    assert len(expected) == len(entries)
    assert frames.parse_directory(data) == expected
    end = cut % (len(data) + 1)
    whole = [sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)]
    if end in whole:
        assert frames.parse_directory(data[:end]) == expected[: whole.index(end)]
    else:
        with pytest.raises(MessageError, match="ends within"):
            frames.parse_directory(data[:end])


def test_what_has_no_fixed_format_is_refused() -> None:
    for declaration in (construct.Int32ub, construct.GreedyBytes):
        with pytest.raises(TypeError, match="little-endian"):
            frames._formats(declaration)
