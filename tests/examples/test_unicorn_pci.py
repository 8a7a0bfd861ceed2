from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyvirtfs import GuestMemory, Virtio9pPci

EXAMPLES = Path(__file__).parents[2] / "examples"

pytest.importorskip("unicorn")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unicorn_pci", EXAMPLES / "unicorn_pci.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tag", ["test_mount", "x", "a tag of thirty-one bytes......"])
def test_the_guest_prints_the_mount_tag(tag: str) -> None:
    command = [sys.executable, str(EXAMPLES / "unicorn_pci.py"), tag]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (answer.stdout, answer.stderr, answer.returncode) == (f"{tag}\n", "", 0)


@pytest.mark.parametrize(
    ("argument", "status", "out", "err"),
    [
        ("x" * 40, 2, "", f"unicorn_pci: mount_tag: '{'x' * 40}' is 40 bytes long, it may be 1 to 31\n"),
        ("", 2, "", "unicorn_pci: mount_tag: '' is 0 bytes long, it may be 1 to 31\n"),
        ("--help", 0, "usage: unicorn_pci.py [-h] [tag]\n", ""),
    ],
)
def test_what_is_no_mount_tag(argument: str, status: int, out: str, err: str) -> None:
    command = [sys.executable, str(EXAMPLES / "unicorn_pci.py"), argument]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (answer.stderr, answer.returncode) == (err, status)
    assert answer.stdout.startswith(out)
    assert bool(answer.stdout) == bool(out)


@pytest.mark.skipif(
    not (shutil.which("as") and shutil.which("objcopy")) or platform.machine() != "x86_64",
    reason="needs binutils for x86-64",
)
def test_the_bytes_are_those_of_the_source(example: ModuleType, tmp_path: Path) -> None:
    assembled, binary = tmp_path / "guest.o", tmp_path / "guest.bin"
    subprocess.run(["as", "-o", assembled, EXAMPLES / "unicorn_guest.S"], timeout=60, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", assembled, binary], timeout=60, check=True)
    assert binary.read_bytes() == example.GUEST


def booted(example: ModuleType, folder: Path) -> tuple[object, Virtio9pPci]:
    memory = GuestMemory.anonymous(example.RAM_NBYTES)
    machine = example.Machine(memory)
    device = Virtio9pPci(f"local,path={folder},security_model=none", mount_tag="tag", memory=memory)
    machine.bridge.plug(device, example.SLOT)
    memory.write(example.LOAD_ADDRESS, example.GUEST)
    machine.run(example.LOAD_ADDRESS)
    return machine, device


def test_the_machine_follows_a_bar_that_the_guest_moves(example: ModuleType, tmp_path: Path) -> None:
    machine, device = booted(example, tmp_path)
    assert isinstance(machine, example.Machine)
    with device:
        assert machine.serial == b"tag\n"
        assert device.bar_read(4, 20, 1) == 3  # ACKNOWLEDGE, DRIVER
        before = list(machine.cpu.mem_regions())
        assert (0xFE000000, 0xFE003FFF) in [(begin, end) for begin, end, _ in before]
        machine.serial.clear()
        moved = example.GUEST.replace((0xFE000000).to_bytes(4, "little"), (0xFD000000).to_bytes(4, "little"))
        machine.cpu.mem_write(0x2000, moved)
        machine.run(0x2000)
        assert machine.serial == b"tag\n"
        assert (0xFD000000, 0xFD003FFF) in [(begin, end) for begin, end, _ in machine.cpu.mem_regions()]
        assert len(list(machine.cpu.mem_regions())) == len(before)


def test_ram_is_one_array_for_both_sides(example: ModuleType) -> None:
    memory = GuestMemory.anonymous(example.RAM_NBYTES)
    machine = example.Machine(memory)
    memory.write(0x9000, b"device")
    assert machine.cpu.mem_read(0x9000, 6) == b"device"
    machine.cpu.mem_write(0x9000, b"guest")
    assert memory.read(0x9000, 6) == b"gueste"
