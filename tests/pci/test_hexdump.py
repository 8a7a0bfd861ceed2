from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.pci.hexdump import hex_dump, parse_hex_dump


def test_form() -> None:
    text = hex_dump(bytes(range(32)) + bytes(32), slot="00:03.0", title="Unclassified device")
    assert text.splitlines()[:3] == [
        "00:03.0 Unclassified device",
        "00: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f",
        "10: 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f",
    ]
    assert text.endswith("30: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n\n")


def test_offsets_beyond_a_byte() -> None:
    lines = hex_dump(bytes(4096)).splitlines()
    assert lines[16][:3] == "f0:"
    assert lines[17][:4] == "100:"
    assert lines[256][:4] == "ff0:"


@given(
    st.dictionaries(
        st.sampled_from(["00:00.0", "00:1f.7", "ff:03.1", "0000:02:00.0"]),
        st.sampled_from([64, 256, 4096]).flatmap(lambda nbytes: st.binary(min_size=nbytes, max_size=nbytes)),
    ),
    st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20),
)
def test_round_trip(functions: dict[str, bytes], title: str) -> None:
    text = "".join(hex_dump(config, slot=slot, title=title) for slot, config in functions.items())
    assert parse_hex_dump(text) == functions


def test_what_lspci_prints_around_is_skipped() -> None:
    text = "00:03.0 Class [0002]: Device [1af4:1049]\n\tSubsystem: Device\n00: f4 1a\n\tnoise\n10: 01\n\n"
    assert parse_hex_dump(text) == {"00:03.0": b"\xf4\x1a" + bytes(14) + b"\x01"}


@pytest.mark.parametrize("text", ["00: 01 02\n", "00:03.0 x\nfff: 01 02\n", "00:03.0 x\nffffffff: 01\n"])
def test_lines_that_belong_nowhere(text: str) -> None:
    with pytest.raises(ValueError, match="belongs nowhere"):
        parse_hex_dump(text)
