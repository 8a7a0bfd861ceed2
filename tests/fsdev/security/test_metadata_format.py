from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.fsdev.security.mapped import NOTHING, Overrides
from pyvirtfs.fsdev.security.metadata_format import MAX_NBYTES, dump, parse

FIELD = st.none() | st.integers(0, (1 << 32) - 1)
OVERRIDES = st.builds(Overrides, FIELD, FIELD, FIELD, st.none() | st.integers(0, (1 << 64) - 1))
LINE = st.binary(max_size=30) | st.sampled_from(
    [b"virtfs.uid=5", b"virtfs.gid=-1", b"virtfs.mode=", b"virtfs.rdev=9" * 3, b"virtfs.uid=99999999999", b"", b"\0"]
)


@given(OVERRIDES)
def test_round_trip(kept: Overrides) -> None:
    assert parse(dump(kept)) == (kept, "")
    assert all(len(line) < 100 for line in dump(kept).split(b"\n"))


@given(st.binary(max_size=200) | st.lists(LINE, max_size=8).map(b"\n".join))
def test_anything_can_be_read(data: bytes) -> None:
    kept, problem = parse(data)
    assert all(number is None or 0 <= number < 1 << 64 for number in kept)
    assert parse(dump(kept)) == (kept, "")
    assert kept == NOTHING or b"virtfs." in data
    assert problem or data in {b"", dump(kept), dump(kept)[:-1]} or data.count(b"virtfs.") >= 1


def test_what_qemu_writes() -> None:
    data = b"virtfs.uid=1000\nvirtfs.gid=100\nvirtfs.mode=33188\nvirtfs.rdev=2049\n"
    assert parse(data) == (Overrides(1000, 100, 0o100644, 0x801), "")
    assert dump(Overrides(1000, 100, 0o100644, 0x801)) == data
    assert dump(Overrides(gid=5)) == b"virtfs.gid=5\n"
    signed = b"virtfs.uid=-2\nvirtfs.gid=-2147483648\nvirtfs.mode=25008\nvirtfs.rdev=-982017\n"
    kept = Overrides(0xFFFFFFFE, 1 << 31, 0o060660, os.makedev(259, 0xFFFFF))
    assert parse(signed) == (kept, "")
    assert dump(kept) == signed
    assert dump(Overrides((1 << 31) - 1, rdev=1 << 32)) == b"virtfs.uid=2147483647\nvirtfs.rdev=4294967296\n"


@pytest.mark.parametrize(
    ("data", "kept", "damaged"),
    [
        (b"", NOTHING, False),
        (b"virtfs.uid=1", Overrides(uid=1), False),  # without the last newline
        (b"virtfs.gid=2\nvirtfs.uid=1\n", Overrides(1, 2), False),
        (b"virtfs.uid=1\nvirtfs.uid=2\n", Overrides(uid=2), False),
        (b"virtfs.uid=-2\n", Overrides(uid=0xFFFFFFFE), False),  # QEMU writes them with a sign
        (b"virtfs.uid=4294967294\n", Overrides(uid=0xFFFFFFFE), False),
        (b"virtfs.uid=4294967296\n", NOTHING, True),
        (b"virtfs.uid=-2147483649\n", NOTHING, True),
        (b"virtfs.uid=\n", NOTHING, True),
        (b"virtfs.uid=x\nvirtfs.gid=7\n", Overrides(gid=7), True),
        (b"virtfs.size=1\n", NOTHING, True),
        (b"\n", NOTHING, True),
        (b"virtfs.uid=1\r\n", NOTHING, True),
        (b"virtfs.uid=" + b"1" * 500 + b"\n", NOTHING, True),
        (b"virtfs.uid=1\n" * 1000, NOTHING, True),
        (b"\x7fELF" + bytes(MAX_NBYTES), NOTHING, True),
    ],
)
def test_lines(data: bytes, kept: Overrides, damaged: bool) -> None:
    found, problem = parse(data)
    assert found == kept
    assert bool(problem) == damaged
