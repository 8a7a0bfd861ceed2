"""The generator: what it understands, what it refuses, what its source is like."""

from __future__ import annotations

import linecache
import struct
import traceback
from typing import Any

import construct
import pytest
from construct import (
    Bytes,
    GreedyBytes,
    Int8ul,
    Int16ub,
    Int16ul,
    Int32ul,
    Int64sl,
    Prefixed,
    PrefixedArray,
    Struct,
    this,
)

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import codec, lowering
from pyvirtfs.p9.messages import DECLARATIONS, Message

TEXT = Prefixed(Int16ul, GreedyBytes)
PAIR = Struct("a" / Int8ul, "b" / Int16ul)


def functions(body: Any) -> dict[str, Any]:
    return lowering.load(lowering.generate([Message("Tnew", 200, "L", body)], {}), "<test>")


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (Struct(), ()),
        (Struct("x" / Int64sl), (-5,)),
        (Struct("p" / PAIR, "x" / Int8ul), ((1, 2), 3)),
        (Struct("s" / TEXT, "p" / PAIR, "t" / TEXT, "x" / Int32ul), (b"one", (1, 2), b"", 9)),
        (Struct("many" / PrefixedArray(Int8ul, PAIR), "x" / Int8ul), (((1, 2), (3, 4)), 5)),
        (Struct("many" / PrefixedArray(Int8ul, PAIR)), (((1, 2),),)),
        (Struct("s" / TEXT, "many" / PrefixedArray(Int16ul, PAIR), "t" / TEXT), (b"q", (), b"r")),
        (Struct("s" / TEXT, "names" / PrefixedArray(Int32ul, TEXT), "t" / TEXT), (b"q", (b"a", b"bc"), b"r")),
        (Struct("s" / TEXT, "names" / PrefixedArray(Int32ul, TEXT)), (b"q", (b"abc",))),
        (Struct("names" / PrefixedArray(Int16ul, Prefixed(Int8ul, GreedyBytes)), "x" / Int8ul), ((b"a", b""), 1)),
    ],
)
def test_shapes_that_no_message_has_yet(body: Any, values: tuple[Any, ...]) -> None:
    made = functions(body)
    data = made["encode_Tnew"](7, *values)
    assert int.from_bytes(data[:4], "little") == len(data)
    assert made["decode_Tnew"](data) == (200, 7, values)
    parsed = body.parse(data[7:])
    for part, value in zip(body.subcons, values, strict=True):
        if isinstance(value, bytes | int):
            assert parsed[part.name] == value
    for nbytes in range(7, len(data)):
        with pytest.raises(MessageError, match="Tnew"):
            made["decode_Tnew"](data[:nbytes])


@pytest.mark.parametrize(
    "body",
    [
        Struct("x" / Int16ub),
        Struct("x" / construct.CString("utf8")),
        Struct("x" / Bytes(4)),
        Struct("x" / Prefixed(Int16ul, Int8ul)),
        Struct("x" / Prefixed(Int16ul, GreedyBytes, includelength=True)),
        Struct("x" / Prefixed(Int16ub, GreedyBytes)),
        Struct("x" / PrefixedArray(Int16ul, Int8ul)),
        Struct("x" / PrefixedArray(Int16ub, PAIR)),
        Struct("x" / Struct("s" / TEXT)),
        Struct("x" / Struct()),
        Struct("count" / Int32ul, "data" / Bytes(this.count), "x" / Int8ul),
        Struct("n" / Int32ul, "data" / Bytes(this.m)),
        Struct("n" / Int32ul, "data" / Bytes(this.n + 1)),
        Struct("n" / Int32ul, "data" / Bytes(lambda this: 4)),
        Struct("data" / Bytes(this.count)),
        Struct("s" / TEXT, "count" / Int32ul, "data" / Bytes(this.count)),
        Struct("tag" / Int32ul),
        Struct("len" / Int32ul),
        Struct("_x" / Int32ul),
    ],
)
def test_what_is_not_understood_is_refused(body: Any) -> None:
    with pytest.raises(TypeError):
        functions(body)


def test_payloads_count_but_are_not_coded() -> None:
    made = functions(Struct("n" / Int32ul, "x" / Int8ul, "data" / Bytes(this.n)))
    data = made["encode_Tnew"](7, 1000, 5)
    assert data == bytes.fromhex("f4030000 c8 0700 e8030000 05")
    assert made["decode_Tnew"](data) == (200, 7, (1000, 5))


def test_entries_consist_of_numbers_and_strings() -> None:
    body = Struct("x" / Int8ul, "s" / TEXT, "p" / PAIR, "t" / TEXT, "y" / Int32ul)
    made = lowering.load(lowering.generate([], {"entry": body}), "<test>")
    assert made["encode_entry"](1, b"ab", (2, 3), b"", 4).hex() == "01 0200 6162 02 0300 0000 04000000".replace(" ", "")
    for declaration in (Struct("many" / PrefixedArray(Int8ul, PAIR)), Struct("n" / Int8ul, "data" / Bytes(this.n))):
        with pytest.raises(TypeError, match="entry"):
            lowering.generate([], {"entry": declaration})


def test_fixed_sizes_follow_from_the_description() -> None:
    assert lowering.fixed_size(lowering.describe(Struct("p" / PAIR, "x" / Int32ul))) == 7
    assert lowering.fixed_size(lowering.describe(Struct("s" / TEXT))) is None


def test_source_is_deterministic() -> None:
    assert lowering.generate(DECLARATIONS, codec.ENTRIES) == codec.SOURCE


def test_tracebacks_show_the_generated_source() -> None:
    linecache.checkcache()
    with pytest.raises(struct.error) as caught:
        codec.encode(24, 1, -1, 0)
    lines = "".join(traceback.format_exception(caught.value))
    assert "_pack_IBHIQ(19, 24, tag, fid, request_mask)" in lines
