"""Offsets and sizes against the numbers of the specification, and the lowered structs against their declarations."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from construct import GreedyBytes, Int16ub, Struct
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.virtio import layout

FIXED = [
    layout.VirtioPciCap,
    layout.VirtioPciNotifyCap,
    layout.VirtioPciCfgCap,
    layout.CommonConfig,
    layout.Descriptor,
    layout.UsedElement,
]


def values(parsed: Any) -> list[int]:
    """The integers of a parsed structure, flat."""
    found = []
    for name, value in parsed.items():
        if name != "_io":
            found += list(value) if isinstance(value, list) else [value]
    return found


@pytest.mark.parametrize(
    ("declaration", "nbytes"), list(zip(FIXED, [16, 20, 20, 64, 16, 8], strict=True)), ids=range(len(FIXED))
)
def test_sizes(declaration: Any, nbytes: int) -> None:
    assert layout.lower(declaration).size == declaration.sizeof() == nbytes


def test_offsets_of_the_common_configuration() -> None:
    fields = layout.fields(layout.CommonConfig)
    assert [offset for offset, _ in fields.values()] == [
        0, 4, 8, 12, 16, 18, 20, 21, 22, 24, 26, 28, 30, 32, 40, 48, 56, 58, 60, 62,
    ]  # fmt: skip
    assert fields["queue_device"] == (48, 8)


@given(data=st.data())
def test_lowered_and_declared_agree(data: st.DataObject) -> None:
    declaration = data.draw(st.sampled_from(FIXED))
    raw = data.draw(st.binary(min_size=declaration.sizeof(), max_size=declaration.sizeof()))
    assert list(layout.lower(declaration).unpack(raw)) == values(declaration.parse(raw))


def test_several_in_a_row() -> None:
    assert layout.lower(layout.Descriptor, 3).unpack(bytes(range(48))) == struct.unpack(
        "<QIHHQIHHQIHH", bytes(range(48))
    )


@pytest.mark.parametrize("declaration", [Struct("rest" / GreedyBytes), Struct("other_end" / Int16ub)])
def test_what_cannot_be_lowered(declaration: Any) -> None:
    with pytest.raises(TypeError):
        layout.lower(declaration)


def test_rings_of_a_size() -> None:
    assert layout.AvailRing.sizeof(size=8) == 6 + 2 * 8
    assert layout.UsedRing.sizeof(size=8) == 6 + 8 * 8
