"""The demonstration that VirtFS is known by, on `pyvirtfs serve`: machines, interrupts, RAM of several kinds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served, demonstrate, interrupts, mount

NBYTES = 2 << 20


@dataclass(frozen=True)
class Case:
    """A guest to boot."""

    interrupts: str = "PCI-MSIX"
    shared: bool = True
    options: dict[str, Any] = field(default_factory=dict)


NO_MSI = {"append": "pci=nomsi"}
CASES = {
    "pc": Case(),
    "pc-intx": Case("IO-APIC", options=NO_MSI),
    "q35-smp2": Case(options={"machine": "q35", "smp": 2}),
    "unshared": Case(shared=False),
}
SLOW_CASES = {
    "q35-intx-smp2": Case("IO-APIC", options={"machine": "q35", "smp": 2, **NO_MSI}),
    "unshared-intx-q35": Case("IO-APIC", shared=False, options={"machine": "q35", **NO_MSI}),
}


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
    ],
)
def test_the_demonstration(case: Case, guest_files: GuestFiles, tmp_path: Path) -> None:
    content = os.urandom(NBYTES)
    (tmp_path / "from_host").write_bytes(content)
    with Served(guest_files, {"test_mount": tmp_path}) as served:
        guest = served.boot(shared=case.shared, **case.options)
        before = interrupts(guest)
        demonstrate(guest, tmp_path)
        # A fresh mount has nothing cached.
        guest.check("cp /mnt/from_host /tmp/copy; cp /tmp/copy /mnt/copy; umount /mnt")
        assert (tmp_path / "copy").read_bytes() == content
        check_interrupts(case, before, interrupts(guest))
        check_processors_and_machine(case, guest)
        ram = served.guest_ram()
        if case.shared:
            assert ram
            assert all("memory-backend-memfd" in path for path in ram)
        else:
            assert ram == []  # the data have gone through the socket


def check_interrupts(case: Case, before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> None:
    """They are of the expected kind, and as many came as requests were waited for, at least."""
    if case.interrupts == "PCI-MSIX":
        assert set(after) == {"virtio0-config", "virtio0-requests"}
        name = "virtio0-requests"
    else:
        assert set(after) == {"virtio0"}
        name = "virtio0"
    assert {kind.partition("-0")[0] for _, kind in after.values()} == {case.interrupts}
    assert after[name][0] - before[name][0] >= 2 * NBYTES / 131072


def check_processors_and_machine(case: Case, guest: RealGuest) -> None:
    assert int(guest.check("nproc")) == case.options.get("smp", 1)
    bridge = "82G33/G31/P35/P31" if case.options.get("machine") == "q35" else "440FX"
    assert bridge in guest.check("lspci -s 00:00.0")


def test_more_than_4_gib_of_ram(guest_files: GuestFiles, tmp_path: Path) -> None:
    """Buffers above the hole for devices below 4 GiB, of which the guest tells the physical addresses."""
    content = os.urandom(NBYTES)
    (tmp_path / "from_host").write_bytes(content)
    with Served(guest_files, {"test_mount": tmp_path}) as served:
        guest = served.boot(memory="5G", smp=2)
        assert int(guest.check("grep MemTotal /proc/meminfo | tr -dc 0-9")) > 4.5 * (1 << 20)
        demonstrate(guest, tmp_path)
        guest.check("umount /mnt")
        mount(guest, options="msize=512000,cache=none")
        told = guest.python(
            f"""
            import mmap, os, struct
            buffer = mmap.mmap(-1, {NBYTES})
            fd = os.open("/mnt/from_host", os.O_RDONLY)
            nbytes = 0
            while nbytes < len(buffer):
                nbytes += os.preadv(fd, [memoryview(buffer)[nbytes:]], nbytes)
            fd = os.open("/mnt/copy", os.O_WRONLY | os.O_CREAT)
            assert os.write(fd, buffer) == len(buffer)
            os.close(fd)
            import ctypes
            address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            with open("/proc/self/pagemap", "rb", buffering=0) as pages:
                pages.seek(address // 4096 * 8)
                entries = struct.unpack(f"{{len(buffer) // 4096}}Q", pages.read(len(buffer) // 4096 * 8))
            frames = [entry & (1 << 55) - 1 for entry in entries]
            print(sum(frame >= (4 << 30) // 4096 for frame in frames), len(frames))
            """
        )
        above, pages = map(int, told.split())
        assert above > pages / 2, told
        assert (tmp_path / "copy").read_bytes() == content
