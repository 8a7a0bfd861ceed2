from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.vmm.vfio_user import messages as m

# As the specification's tables have them: number, name, request, reply. Written down again, in another notation.
WIRE = [
    (1, "VERSION", "<HH", "<HH"),
    (2, "DMA_MAP", "<IIQQQ", ""),
    (3, "DMA_UNMAP", "<IIQQ", "<IIQQ"),
    (4, "DEVICE_GET_INFO", "<IIII", "<IIII"),
    (5, "DEVICE_GET_REGION_INFO", "<IIIIQQ", "<IIIIQQ"),
    (6, "DEVICE_GET_REGION_IO_FDS", "<IIII", "<IIII"),
    (7, "DEVICE_GET_IRQ_INFO", "<IIII", "<IIII"),
    (8, "DEVICE_SET_IRQS", "<IIIII", ""),
    (9, "REGION_READ", "<QII", "<QII"),
    (10, "REGION_WRITE", "<QII", "<QII"),
    (11, "DMA_READ", "<QQ", "<QQ"),
    (12, "DMA_WRITE", "<QQ", "<QQ"),
    (13, "DEVICE_RESET", "", ""),
    (15, "REGION_WRITE_MULTI", "<Q", "<Q"),
    (16, "DEVICE_FEATURE", "<II", "<II"),
    (17, "MIG_DATA_READ", "<II", "<II"),
    (18, "MIG_DATA_WRITE", "<II", ""),
]
LAYOUTS = [
    *((declaration, layout) for each in m.COMMANDS.values() for declaration, layout in (
        (each.request, each.request_layout), (each.reply, each.reply_layout)
    )),
    (m.Header, m.HEADER),
    (m.RegionAccess, m.REGION_ACCESS),
    (m.SingleWrite, m.SINGLE_WRITE),
    (m.DmaAccess, m.DMA_ACCESS),
]  # fmt: skip


@pytest.mark.parametrize(("number", "name", "request_format", "reply_format"), WIRE, ids=str)
def test_the_specification_says_the_same(number: int, name: str, request_format: str, reply_format: str) -> None:
    command = m.COMMANDS[number]
    assert (command.number, command.name) == (number, name)
    for declaration, wire in ((command.request, request_format), (command.reply, reply_format)):
        values = range(1, 1 + len(wire.removeprefix("<")))
        names = [field.name for field in declaration.subcons]
        assert declaration.build(dict(zip(names, values, strict=True))) == struct.pack(wire, *values)


def test_there_are_no_other_commands() -> None:
    assert sorted(m.COMMANDS) == [number for number, *_ in WIRE]
    assert {each.number for each in m.COMMANDS.values() if each.from_server} == {m.DMA_READ, m.DMA_WRITE}


@given(data=st.data())
@pytest.mark.parametrize(("declaration", "layout"), LAYOUTS)
def test_lowered_and_declared_are_equal(declaration: Any, layout: struct.Struct, data: st.DataObject) -> None:
    assert layout.size == declaration.sizeof()
    raw = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
    parsed = declaration.parse(raw)
    values = layout.unpack(raw)
    assert [parsed[field.name] for field in declaration.subcons] == list(values)
    assert layout.pack(*values) == declaration.build(parsed) == raw


@pytest.mark.parametrize(
    ("header", "body", "fds", "line"),
    [
        ((7, 13, 16, 0, 0), b"", 0, "DEVICE_RESET id 7"),
        ((7, 13, 16, 1, 0), b"", 0, "DEVICE_RESET reply id 7"),
        ((1, 99, 16, 0x21, 22), b"", 0, "command 99 reply id 1: error 22"),
        ((1, 99, 20, 0, 0), b"1234", 0, "command 99 id 1 +4 bytes"),
        ((2, 9, 19, 0, 0), b"123", 0, "REGION_READ id 2"),
        (
            (2, 10, 34, 0x10, 0),
            struct.pack("<QII", 0x3000, 4, 2) + b"\0\0",
            0,
            "REGION_WRITE id 2 offset 0x3000 region 0x4 count 0x2 +2 bytes no reply",
        ),
        (
            (3, 2, 48, 0, 0),
            struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 0x2000),
            2,
            "DMA_MAP id 3 argsz 0x20 flags 0x3 offset 0x0 address 0x1000 size 0x2000 2 descriptors",
        ),
        ((3, 8, 16, 0, 0), b"", 1, "DEVICE_SET_IRQS id 3 1 descriptor"),
    ],
)
def test_describe(header: tuple[int, ...], body: bytes, fds: int, line: str) -> None:
    found = m.describe(header, body, fds)
    assert found.startswith(line) if header[1] == 9 else found == line


@given(st.tuples(*[st.integers(0, 0xFFFF)] * 2, *[st.integers(0, 0xFFFFFFFF)] * 3), st.binary(max_size=64))
def test_anything_can_be_described(header: tuple[int, ...], body: bytes) -> None:
    assert "\n" not in m.describe(header, body)
