"""The guest sees the same PCI function, whether QEMU's own device is behind it or this one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.realguest.machine import GuestFiles
from tests.realguest.served import Served

# Numbers that a guest's firmware and kernel choose, which differ between any two functions.
CHOSEN = [
    (re.compile(r"^[0-9a-f]{2}:[0-9a-f]{2}\.\d "), ""),
    (re.compile(r"Physical Slot: \S+"), "Physical Slot"),
    (re.compile(r"routed to IRQ \d+"), "routed to an IRQ"),
    (re.compile(r"Memory at [0-9a-f]+"), "Memory at an address"),
]

# Bits of configuration space that are chosen: BARs, interrupt line.
IGNORED = {**dict.fromkeys(range(0x10, 0x28), 0xFF), 0x3C: 0xFF}


def configuration(dump: str) -> list[str]:
    """What `lspci -xxx` shows, without what is ignored: offsets and bytes."""
    data = [int(word, 16) for line in dump.splitlines()[1:] for word in line.split()[1:]]
    return [f"{at:#x}: {byte & ~IGNORED.get(at, 0):#04x}" for at, byte in enumerate(data)]


def blocks(text: str) -> list[list[str]]:
    """Those of 9p devices, without what is chosen."""
    found = []
    for block in text.split("\n\n"):
        if "[1af4:1049]" in block:
            lines = block.strip().splitlines()
            for pattern, to in CHOSEN:
                lines = [pattern.sub(to, line) for line in lines]
            found.append(lines)
    return found


@pytest.mark.parametrize("express", [False, True], ids=["pci", "express"])
def test_lspci(express: bool, guest_files: GuestFiles, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    with Served(guest_files, {"ours": tmp_path / "ours"}, options=["--express"] if express else []) as served:
        port = ["-device", "pcie-root-port,id=port{0},chassis={0},slot={0}"] if express else []
        ports = [word.format(number) for number in (1, 2) for word in port]
        theirs = [
            "-fsdev", f"local,id=own,path={tmp_path / 'theirs'},security_model=none",
            "-device", "virtio-9p-pci,fsdev=own,mount_tag=theirs,disable-legacy=on" + ",bus=port1" * express,
        ]  # fmt: skip
        option, device = served.arguments()
        ours = [option, device.removesuffix("}") + ',"bus":"port2"}' if express else device]
        guest = served.boot(*ports, *theirs, machine="q35" if express else "pc", devices=ours)
        script = "cd /sys/bus/virtio/devices; for i in *; do tr '\\0' ' ' <$i/mount_tag; readlink -f $i/..; done"
        tags = {tag: path[-7:] for tag, path in (line.split() for line in guest.check(script).splitlines())}
        assert set(tags) == {"ours", "theirs"}
        shown = {tag: blocks(guest.check(f"lspci -vvnn -s {at}")) for tag, at in tags.items()}
        raw = {tag: guest.check(f"lspci -xxx -s {at}") for tag, at in tags.items()}
    (ours_shown,), (theirs_shown,) = shown["ours"], shown["theirs"]
    text = "\n".join(theirs_shown)
    assert "\n".join(ours_shown) == text
    assert "Red Hat, Inc. Virtio 9P transport [1af4:1049] (rev 01)" in text
    assert "MSI-X: Enable+ Count=2" in text
    assert ("Express (v2) Endpoint" in text) is express
    # The same bytes at the same offsets, too: there may be something that lspci does not show.
    assert len(configuration(raw["ours"])) == 256
    assert configuration(raw["ours"]) == configuration(raw["theirs"])
