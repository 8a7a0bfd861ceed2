from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.pci.layout import EXPRESS
from pyvirtfs.pci.lspci_express import express_lines, flags


def text(*, first_function: bool = False, has_memory_bar: bool = False, **registers: Any) -> str:
    data = EXPRESS.build({"capability_id": 0x10, "flags": 2, **registers})
    return "\n".join(express_lines(data, first_function=first_function, has_memory_bar=has_memory_bar))


def test_flags() -> None:
    assert flags(0b101, ("One", 1), ("Two", 2), ("Four", 4)) == "One+ Two- Four+"


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (0x02, "Express (v2) Endpoint, MSI 00"),
        (0x11, "Express (v1) Legacy Endpoint, MSI 00"),
        (0x0692, "Express (v2) Root Complex Integrated Endpoint, MSI 03"),
        (0x42, "Express (v2) Unknown type 4, MSI 00"),
    ],
)
def test_kinds(kind: int, first: str) -> None:
    lines = text(flags=kind).split("\n")
    assert lines[0] == first
    assert ("LnkCap" in "".join(lines)) == (kind >> 4 in {0, 1})
    assert ("DevCap2" in "".join(lines)) == (kind & 15 == 2 and kind >> 4 & 15 != 4)


def test_an_endpoint(express_device: Any) -> None:
    lines = express_lines(bytes(express_device.config.data[0x40:]), first_function=False, has_memory_bar=True)
    assert lines[0] == "Express (v2) Endpoint, MSI 00"
    assert "\t\tLnkCap:\tPort #0, Speed 2.5GT/s, Width x1, ASPM L0s, Exit Latency L0s <64ns" in lines
    assert "\t\tLnkSta:\tSpeed 2.5GT/s, Width x1" in lines
    assert "\t\t\tExtTag+ AttnBtn- AttnInd- PwrInd- RBE+ FLReset+ SlotPowerLimit 0W" in lines
    assert "\t\t\t AtomicOpsCap: 32bit- 64bit- 128bitCAS-" in lines


def test_a_link_below_and_above_its_capability() -> None:
    assert "Speed 2.5GT/s (downgraded), Width x4 (overdriven)" in text(link_capabilities=0x23, link_status=0x41)


@pytest.mark.parametrize(("value", "watts"), [(25 << 18, "25W"), (0xF0 << 18, "250W"), (0xFF << 18, ">600W")])
def test_slot_power(value: int, watts: str) -> None:
    assert f"SlotPowerLimit {watts}\n" in text(device_capabilities=value)
    assert "SlotPowerLimit 2.5W" in text(device_capabilities=25 << 18 | 1 << 26)


def test_what_only_the_first_function_shows() -> None:
    registers: dict[str, Any] = {"link_capabilities_2": 0x0E, "link_control_2": 0x9003}
    shown = text(first_function=True, **registers)
    assert "LnkCap2: Supported Link Speeds: 2.5-8GT/s, Crosslink-" in shown
    assert "LnkCtl2: Target Link Speed: 8GT/s, EnterCompliance-" in shown
    assert "0dB de-emphasis, 3.5dB preshoot" in shown
    hidden = text(**registers)
    assert "LnkCap2" not in hidden
    assert "LnkCtl2" not in hidden


def test_a_short_capability_counts_as_filled_with_zeroes() -> None:
    assert express_lines(b"\x10\x00\x02\x00", first_function=True, has_memory_bar=False)
