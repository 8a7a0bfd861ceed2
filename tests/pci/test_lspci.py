"""Our words against those of pciutils itself, where it is installed, and by themselves."""

from __future__ import annotations

import shutil
import subprocess
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from pyvirtfs.pci import Capability, HostBridge
from pyvirtfs.pci.hexdump import hex_dump
from pyvirtfs.pci.lspci import Names, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Lines that pciutils makes up: it takes the upper half of a 64-bit BAR for another region, and shows the bridge
# extensions of power management for functions that are no bridge.
MADE_UP = ("Region 5: I/O ports at", "Region 5: Memory at", "Bridge: PM")


def decode_virtio(data: bytes) -> list[str] | None:
    """What a caller who knows virtio brings along."""
    if data[2] < 16:
        return None
    kinds = {1: "CommonCfg", 2: "Notify", 3: "ISR", 4: "DeviceCfg", 8: "SharedMemory"}
    offset, size, extra = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12, 16))
    multiplier = f" multiplier={extra:08x}" if data[3] == 2 and data[2] >= 20 else ""
    name = kinds.get(data[3], "<unknown>")
    return [f"VirtIO: {name}", f"BAR={data[4]} offset={offset:08x} size={size:08x}{multiplier}"]


def virtio_like(make_device: Callable[..., Any], **options: Any) -> Any:
    device = make_device(vectors=0, **options)
    for kind, nbytes, offset in ((1, 16, 0), (3, 16, 0x1000), (4, 16, 0x2000), (2, 20, 0x3000), (5, 20, 0)):
        fields = bytes([9, 0, nbytes, kind, 4 if kind != 5 else 0, 0, 0, 0])
        fields += offset.to_bytes(4, "little") + (0x1000 if kind != 5 else 0).to_bytes(4, "little")
        device.add_capability(Capability(fields + (b"\x04\0\0\0" if nbytes == 20 else b"")))
    device.add_msix(2)
    return device


def words(lines: list[str]) -> list[str]:
    return [" ".join(line.split()) for line in lines if line.strip()]


@pytest.fixture
def lspci(tmp_path: Path) -> Callable[[dict[str, bytes]], dict[str, list[str]]]:
    """Runs the real one on dumps and returns its lines by slot."""
    program = shutil.which("lspci")
    if program is None:
        pytest.skip("pciutils is not installed")

    def run(functions: dict[str, bytes]) -> dict[str, list[str]]:
        dump = tmp_path / "dump"
        dump.write_text("".join(hex_dump(config, slot=slot) for slot, config in functions.items()))
        done = subprocess.run(
            [program, "-F", str(dump), "-vv", "-nn"],
            capture_output=True,
            encoding="latin-1",
            check=True,
            env={"LC_ALL": "C"},
            timeout=30,
        )
        blocks = (block.split("\n") for block in done.stdout.strip("\n").split("\n\n"))
        return {block[0].split(" ", 1)[0]: block for block in blocks}

    return run


def differences(functions: dict[str, bytes], theirs: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    """Lines behind the names that only one of the two prints."""
    found = []
    for slot, config in functions.items():
        ours = words(describe(config, slot=slot, vendor_decoders={0x1AF4: decode_virtio}).splitlines()[2:])
        other = words(theirs.get(slot, [])[2:])
        found += [(slot, "ours", line) for line in ours if line not in other]
        found += [(slot, "theirs", line) for line in other if line not in ours and not line.startswith(MADE_UP)]
    return found


@pytest.mark.parametrize("express", [False, True])
@pytest.mark.parametrize("state", ["reset", "assigned", "in use"])
def test_a_function_as_pciutils_sees_it(
    express: bool, state: str, make_device: Callable[..., Any], lspci: Callable[..., Any]
) -> None:
    device = virtio_like(make_device, express=express)
    if state != "reset":
        device.config_write(0x10, 4, 0xC000)
        device.config_write(0x14, 4, 0xFEBF1000)
        device.config_write(0x20, 4, 0xFE000000)
        device.config_write(0x24, 4, 0x80)
        device.config_write(0x3C, 1, 11)
    if state == "in use":
        device.config_write(4, 2, 0x407)
        device.config_write(device.capabilities.items[-1].offset + 2, 2, 0x8000)
        device.config_write(0x0C, 1, 16)
    functions = {"00:03.0": bytes(device.config.data), "00:00.0": bytes(HostBridge().functions[0, 0].config.data)}
    theirs = lspci(functions)
    assert differences(functions, theirs) == []
    ours = describe(functions["00:03.0"], slot="00:03.0", vendor_decoders={0x1AF4: decode_virtio})
    assert len(words(ours.splitlines())) > (40 if express else 17)
    assert words(theirs["00:03.0"])[0].endswith("[1af4:1049] (rev 01)")


@pytest.mark.parametrize("part", ["header", "power", "express", "capabilities"])
def test_random_registers_as_pciutils_sees_them(
    part: str, make_device: Callable[..., Any], lspci: Callable[..., Any]
) -> None:
    random = Random(part)
    functions = {}
    for number in range(256):
        config = bytearray(virtio_like(make_device, express=part != "capabilities").config.data[:256])
        scramble(part, config, random)
        functions[f"00:{number >> 3:02x}.{number & 7}"] = bytes(config)
    assert differences(functions, lspci(functions)) == []


def scramble(part: str, config: bytearray, random: Random) -> None:
    def noise(start: int, stop: int) -> None:
        for at in range(start, stop):
            config[at] = random.choice([0, config[at], random.randrange(256), 1 << random.randrange(8)])

    if part == "header":
        noise(0x04, 0x0E)
        noise(0x10, 0x28)
        noise(0x2C, 0x34)
        noise(0x3E, 0x40)
        for bar in range(0x10, 0x28, 4):
            config[bar] &= ~4  # pciutils takes the upper half of a 64-bit BAR for another region
            config[bar + 3] |= 0x10  # an address, so that both read it as assigned
        config[0x3C:0x3E] = bytes([random.randrange(256), random.randrange(5)])
    elif part == "power":
        noise(0x7E, 0x84)
    elif part == "express":
        config[0x42] = random.choice([0x02, 0x02, 0x12, 0x92, 0x01, 0x03])
        noise(0x43, 0x7C)
    else:
        config[0x34], config[0x40:0x100] = 0x40, bytes(0xC0)
        config[0x40:0x42] = bytes(
            [random.choice([0x05, 0x11, 0x13, 0x15, 0xFF, 0x00, 0x0E]), random.choice([0, 0x40, 0x60])]
        )
        config[0x60:0x62] = bytes([random.choice([0x05, 0x01, 0x09]), random.choice([0, 0x40, 0x63])])
        noise(0x42, 0x60)
        noise(0x62, 0x80)


def test_the_whole_text(device: Any) -> None:
    device.config_write(0x20, 4, 0xFE000000)
    device.config_write(4, 2, 0x406)
    text = describe(
        bytes(device.config.data),
        slot="00:03.0",
        names=Names(vendors={0x1AF4: "Red Hat, Inc."}, devices={(0x1AF4, 0x1049): "Virtio 1.0 filesystem"}),
        bar_sizes={index: bar.nbytes for index, bar in device.bars.items()},
    )
    assert text == (
        "00:03.0 Unclassified device [0002]: Red Hat, Inc. Virtio 1.0 filesystem [1af4:1049] (rev 01)\n"
        "\tSubsystem: Red Hat, Inc. Device [1af4:1100]\n"
        "\tControl: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+\n"
        "\tStatus: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-\n"
        "\tLatency: 0\n"
        "\tInterrupt: pin A routed to IRQ 0\n"
        "\tRegion 0: I/O ports at <unassigned> [disabled] [size=64]\n"
        "\tRegion 1: Memory at <unassigned> (32-bit, non-prefetchable) [size=4K]\n"
        "\tRegion 2: Memory at <unassigned> (32-bit, non-prefetchable) [size=16]\n"
        "\tRegion 4: Memory at fe000000 (64-bit, prefetchable) [size=16K]\n"
        "\tCapabilities: [40] MSI-X: Enable- Count=2 Masked-\n"
        "\t\tVector table: BAR=1 offset=00000000\n"
        "\t\tPBA: BAR=1 offset=00000800\n"
    )


def test_names() -> None:
    assert Names().class_name(0x060000) == "Host bridge [0600]"
    assert Names().class_name(0x0C0300) == "Serial bus controller [0c03]"
    assert Names().class_name(0x7F0000) == "Class [7f00]"
    assert Names().device_name(0x1AF4, 0x1049) == "Device [1af4:1049]"


def test_unknown_headers_and_short_dumps() -> None:
    assert describe(bytes(14) + b"\x02", slot="01:00.0").splitlines() == [
        "01:00.0 Non-VGA unclassified device [0000]: Device [0000:0000]",
        "\t!!! Unknown header type 02",
    ]
    assert describe(b"").count("\n") == 3


def test_a_vendor_capability_without_decoder(make_device: Callable[..., Any]) -> None:
    config = bytes(virtio_like(make_device).config.data)
    assert "Vendor Specific Information: Len=14 <?>\n" in describe(config)
    assert "Len=10 <?>\n" in describe(config, vendor_decoders={0x1AF4: lambda data: None})


def test_any_bytes_can_be_described() -> None:
    random = Random(7)
    for _ in range(300):
        config = bytearray(random.randbytes(random.choice([64, 256, 4096])))
        config[0x0E] &= 0x80
        config[0x06] |= 0x10
        assert describe(bytes(config), vendor_decoders={}).endswith("\n")
