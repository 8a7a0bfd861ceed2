"""The generated codec against the declarations that it was generated from."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import codec, frames
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import COUNTED_DATA, MESSAGES, QID, QIDS, STAT, STAT_UNIX, STRING, STRINGS, Message

QIDS_OF_TUPLES = st.tuples(st.integers(0, 0xFF), st.integers(0, 0xFFFFFFFF), st.integers(0, 2**64 - 1))
NAMES = st.binary(max_size=20)


def values_of(declaration: Any) -> st.SearchStrategy[Any]:
    """Anything that a field may hold, from what it is declared as."""
    if declaration is STRING:
        return NAMES
    if declaration is QID:
        return QIDS_OF_TUPLES
    if declaration is STRINGS:
        return st.lists(NAMES, max_size=17).map(tuple)
    if declaration is QIDS:
        return st.lists(QIDS_OF_TUPLES, max_size=17).map(tuple)
    bits = 8 * declaration.sizeof()
    if declaration.fmtstr[-1].islower():
        return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.integers(0, 2**bits - 1)


CODECS = (codec.LINUX, codec.UNIX, codec.PLAIN)
FORMS = [(each, message) for each in CODECS for message in each.vocabulary.messages]
Sample = tuple[codec.Codec, Message, int, dict[str, Any]]


@st.composite
def messages(draw: st.DrawFn) -> Sample:
    """A dialect, a message type, a tag, and fields with the payload that their count asks for."""
    coder, message = draw(st.sampled_from(FORMS))
    parts = [part for part in message.body.subcons if part.subcon is not COUNTED_DATA]
    fields = {part.name: draw(values_of(part.subcon)) for part in parts}
    if message.has_payload:
        fields["data"] = draw(st.binary(max_size=40))
        fields["count"] = len(fields["data"])
    return coder, message, draw(st.integers(0, 0xFFFF)), fields


def declared(data: bytes, coder: codec.Codec = codec.LINUX) -> tuple[int, int, tuple[Any, ...]] | None:
    """What `codec.decode` must say, by way of construct alone; None: malformed."""
    size, number, _ = frames.parse_header(data)
    payload: Any = None
    message = coder.vocabulary.by_type[number]
    if message.has_payload:  # need not be there: only its length counts
        head = 7 + sum(part.subcon.sizeof() for part in message.body.subcons[:-1])
        if size < head:
            return None
        data, payload = data[:head], range(size - head)
    try:
        frame = frames.parse(data, payload, vocabulary=coder.vocabulary)
    except MessageError:
        return None
    values = tuple(value for name, value in frame.fields.items() if name != "data")
    return frame.message.type, frame.tag, values


def decoded(data: bytes, coder: codec.Codec = codec.LINUX) -> tuple[int, int, tuple[Any, ...]] | None:
    try:
        return coder.decode(data)
    except MessageError:
        return None


@given(messages())
@settings(max_examples=400, deadline=None)
def test_good_messages_are_equal_both_ways(sample: Sample) -> None:
    coder, message, tag, fields = sample
    data = frames.build(message.name, tag, fields, vocabulary=coder.vocabulary)
    values = tuple(value for name, value in fields.items() if name != "data")
    assert coder.decode(data) == (message.type, tag, values)
    assert coder.encode(message.type, tag, *values) + fields.get("data", b"") == data
    parsed = frames.parse(data, vocabulary=coder.vocabulary)
    assert parsed.fields == {name: fields[name] for name in message.fields}


@given(messages(), st.data())
@settings(max_examples=800, deadline=None)
def test_damaged_messages_are_refused_by_both_or_read_alike(sample: Sample, data: st.DataObject) -> None:
    coder, message, tag, fields = sample
    damaged = bytearray(frames.build(message.name, tag, fields, vocabulary=coder.vocabulary))
    for how in data.draw(st.lists(st.sampled_from(["cut", "extend", "mutate", "size"]), max_size=3)):
        if how == "cut":
            del damaged[data.draw(st.integers(7, max(7, len(damaged)))) :]
        elif how == "extend":
            damaged += data.draw(st.binary(max_size=8))
        elif how == "mutate":
            position = data.draw(st.integers(5, len(damaged) - 1))
            damaged[position] = data.draw(st.integers(0, 255))
        else:
            size = data.draw(
                st.one_of(st.just(len(damaged)), st.integers(0, len(damaged) + 9), st.integers(0, 2**32 - 1))
            )
            struct.pack_into("<I", damaged, 0, size)
    assert decoded(bytes(damaged), coder) == declared(bytes(damaged), coder)


@pytest.mark.parametrize(
    ("coder", "message"), FORMS, ids=[f"{each.vocabulary.version.decode()}-{message.name}" for each, message in FORMS]
)
def test_every_cut_and_every_extension_is_malformed(coder: codec.Codec, message: Message) -> None:
    fields: dict[str, Any] = {}
    for part in message.body.subcons:
        if part.subcon is STRINGS:
            fields[part.name] = (b"ab", b"c")
        elif part.subcon is QIDS:
            fields[part.name] = ((1, 2, 3), (4, 5, 6))
        elif part.subcon is QID:
            fields[part.name] = (1, 2, 3)
        elif part.subcon is STRING:
            fields[part.name] = b"name"
        elif part.subcon is not COUNTED_DATA:
            fields[part.name] = 0
    good = frames.build(message.name, 1, fields, payload=False, vocabulary=coder.vocabulary)
    assert coder.decode(good) == declared(good, coder)
    for nbytes in range(len(good)):
        with pytest.raises(MessageError):
            coder.decode(good[:nbytes])
        with pytest.raises(MessageError):  # also if its size admits it
            coder.decode(struct.pack("<I", nbytes) + good[4:nbytes])
        with pytest.raises(MessageError):  # or if only its size does
            coder.decode(struct.pack("<I", nbytes) + good[4:])
    with pytest.raises(MessageError):
        coder.decode(struct.pack("<I", len(good) + 1) + good[4:] + b"\0")


def test_bytes_behind_the_message_are_ignored() -> None:
    data = codec.encode(c.TWALK, 1, 2, 3, (b"a",))
    assert codec.decode(data + b"rest") == (c.TWALK, 1, (2, 3, (b"a",)))
    data = codec.encode(c.TGETATTR, 1, 2, 3)
    assert codec.decode(data + b"rest") == (c.TGETATTR, 1, (2, 3))


def test_payload_may_be_absent_or_partly_there() -> None:
    head = codec.encode(c.TWRITE, 1, 2, 3, 100)
    assert len(head) == 23
    assert head[:4] == (123).to_bytes(4, "little")
    for present in (0, 1, 99, 100):
        assert codec.decode(head + bytes(present)) == (c.TWRITE, 1, (2, 3, 100))
    with pytest.raises(MessageError):
        codec.decode((122).to_bytes(4, "little") + head[4:] + bytes(100))
    assert codec.encode(c.RREAD, 1, 50) == bytes.fromhex("3d000000 75 0100 32000000")


@pytest.mark.parametrize("coder", CODECS)
def test_servers_know_requests_only(coder: codec.Codec) -> None:
    for number, message in coder.vocabulary.by_type.items():
        known = coder.request_decoders[number] is coder.decoder(number)
        assert known == message.is_request
        assert coder.fixed_size(number) == (None if _varies(message) else 7 + message.body.sizeof())


def _varies(message: Message) -> bool:
    return message.has_payload or any(part.subcon in {STRING, STRINGS, QIDS} for part in message.body.subcons)


@pytest.mark.parametrize("number", sorted(set(range(256)) - set(MESSAGES)))
def test_unknown_types_have_a_tag_and_no_fields(number: int) -> None:
    data = struct.pack("<IBH", 9, number, 0x1234) + b"xy"
    assert codec.decode(data) == (number, 0x1234, ())
    assert codec.fixed_size(number) is None
    with pytest.raises(KeyError):
        codec.encoder(number)
    for size in (0, 6, 10, 2**32 - 1):
        with pytest.raises(MessageError):
            codec.decode(struct.pack("<I", size) + data[4:])


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    decoded(data)


@pytest.mark.parametrize("nbytes", range(7))
def test_less_than_a_header_is_refused(nbytes: int) -> None:
    with pytest.raises(MessageError):
        codec.decode(b"\x07\0\0\0\x79\1\0"[:nbytes])
    with pytest.raises(MessageError):
        codec.header(bytes(nbytes))


def test_a_count_beyond_the_message_costs_nothing() -> None:
    data = struct.pack("<IBHIIH", 17, c.TWALK, 1, 0, 1, 0xFFFF)
    with pytest.raises(MessageError, match="Twalk"):
        codec.decode(data)
    data = struct.pack("<IBHH", 9, c.RWALK, 1, 0xFFFF)
    with pytest.raises(MessageError, match="Rwalk"):
        codec.decode(data)


def test_encoders_refuse_what_does_not_fit() -> None:
    with pytest.raises(struct.error):
        codec.encode(c.RLERROR, 1, 2**32)
    with pytest.raises(struct.error):
        codec.encode(c.RREADLINK, 1, bytes(65536))
    assert len(codec.encode(c.RREADLINK, 1, bytes(65535))) == 9 + 65535
    with pytest.raises(TypeError):
        codec.encode(c.RLERROR, 1)
    with pytest.raises(ValueError, match="unpack"):
        codec.encode(c.RATTACH, 1, (1, 2))


def test_bound_functions_are_those_of_the_tables() -> None:
    assert codec.encoder(c.RLERROR)(7, ecode=5) == codec.encode(c.RLERROR, 7, 5)
    assert codec.decoder(c.RLERROR)(codec.encode(c.RLERROR, 7, 5)) == (c.RLERROR, 7, (5,))
    assert codec.header(codec.encode(c.RLERROR, 7, 5)) == (11, c.RLERROR, 7)


@given(QIDS_OF_TUPLES, st.integers(0, 2**64 - 1), st.integers(0, 255), st.binary(max_size=255))
def test_directory_entries_are_as_declared(qid: tuple[int, int, int], offset: int, kind: int, name: bytes) -> None:
    data = codec.encode_directory_entry(qid, offset, kind, name)
    assert len(data) == c.DIRECTORY_ENTRY_SIZE + len(name)
    assert frames.parse_directory(data + data) == [(qid, offset, kind, name)] * 2
    with pytest.raises(MessageError):
        frames.parse_directory(data[:-1])


@pytest.mark.parametrize(
    ("declaration", "encode"), [(STAT, codec.encode_stat_plain), (STAT_UNIX, codec.encode_stat_unix)]
)
@given(data=st.data())
def test_stats_are_as_declared(declaration: Any, encode: Any, data: st.DataObject) -> None:
    fields = {part.name: data.draw(values_of(part.subcon)) for part in declaration.subcons}
    built = encode(*fields.values())
    parsed = declaration.parse(built)
    parsed.pop("_io")
    parsed.qid = (parsed.qid.type, parsed.qid.version, parsed.qid.path)
    assert dict(parsed) == fields
    assert len(built) == len(
        declaration.build({**parsed, "qid": dict(zip(("type", "version", "path"), fields["qid"], strict=True))})
    )
