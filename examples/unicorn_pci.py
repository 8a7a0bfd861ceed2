"""A small x86-64 machine on Unicorn with a VirtFS device on its PCI bus.

    python examples/unicorn_pci.py [TAG]

The machine is a processor, RAM, a host bridge and a serial port. Its guest (`unicorn_guest.S` beside this file, a few
dozen instructions on the bare metal) finds the device, places and enables it, starts to drive it, and prints its mount
tag. RAM is the numpy array of `GuestMemory` itself: what the processor stores, the device reads, without a copy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_64, UC_PROT_ALL, Uc
from unicorn.x86_const import UC_X86_INS_IN, UC_X86_INS_OUT, UC_X86_REG_RSP

from pyvirtfs import GuestMemory, Virtio9pPci
from pyvirtfs.errors import ConfigError
from pyvirtfs.pci import BarKind, HostBridge, PciFunction

RAM_NBYTES = 16 << 20
LOAD_ADDRESS = 0x1000
STACK_TOP = 0x8000
SLOT = 6
SERIAL = 0x3F8

# unicorn_guest.S, assembled.
GUEST = bytes.fromhex(
    """
    bb0000008089d8e8c50000003df41a4910740f81c30008000081fb0000018072e4f48d4320b9ffffffffe8af0000008d
    4320e89a00000025000000fe89c589c18d4320e8960000008d432431c9e88c0000008d4304b906000000e87f0000008d
    4334e86a0000000fb6f885ff74388d043be85b00000089c68d443b08e85000000001e84080fe097516c1c6084080fe01
    440f44e04080fe04440f44e8c1ce08c1ee0889f0ebc141c64424140041c64424140141c644241403410fb74d00498d75
    02baf803000067e304aceee2fcb00aeef4baf80c0000efbafc0c0000edc3baf80c0000efbafc0c000089c8efc3
    """
)


class Machine:
    """One processor in flat 64-bit mode, and what it reaches by memory and by ports.

    Args:
        memory: Its RAM, one region.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.serial = bytearray()
        self.bridge = HostBridge(on_bar_moved=self._bar_moved)
        self.cpu = Uc(UC_ARCH_X86, UC_MODE_64)
        for ram in memory.regions:
            self.cpu.mem_map_ptr(ram.address, ram.nbytes, UC_PROT_ALL, ram.array.ctypes.data)
        self.cpu.hook_add(UC_HOOK_INSN, self._port_in, aux1=UC_X86_INS_IN)
        self.cpu.hook_add(UC_HOOK_INSN, self._port_out, aux1=UC_X86_INS_OUT)

    def run(self, address: int) -> None:
        """Execute from `address` until the guest halts."""
        self.cpu.reg_write(UC_X86_REG_RSP, STACK_TOP)
        self.cpu.emu_start(address, until=0)

    def _port_in(self, _cpu: Uc, port: int, size: int, _data: object) -> int:
        return self.bridge.io_read(port, size)

    def _port_out(self, _cpu: Uc, port: int, size: int, value: int, _data: object) -> None:
        if port == SERIAL:
            self.serial.append(value & 0xFF)
        else:
            self.bridge.io_write(port, size, value)

    def _bar_moved(self, function: PciFunction, index: int, old: int | None, new: int | None) -> None:
        """The guest moved a BAR, or switched it on or off: move what Unicorn has mapped for it."""
        bar = function.bars[index]
        if bar.kind is BarKind.IO:
            return  # ports come through `_port_in` and `_port_out` wherever they are

        def read(_cpu: Uc, offset: int, size: int, _data: object) -> int:
            return function.bar_read(index, offset, size)

        def write(_cpu: Uc, offset: int, size: int, value: int, _data: object) -> None:
            function.bar_write(index, offset, size, value)

        if old is not None:
            self.cpu.mem_unmap(old, bar.nbytes)
        if new is not None:
            self.cpu.mmio_map(new, bar.nbytes, read, None, write, None)


def boot(mount_tag: str) -> bytes:
    """Boot the guest on a machine whose device offers an empty folder as `mount_tag`; what it printed.

    Raises:
        ConfigError: There cannot be such a tag.
    """
    memory = GuestMemory.anonymous(RAM_NBYTES)
    machine = Machine(memory)
    with tempfile.TemporaryDirectory() as folder:
        export = f"local,path={folder.replace(',', ',,')},security_model=none"
        with Virtio9pPci(export, mount_tag=mount_tag, memory=memory) as device:
            machine.bridge.plug(device, SLOT)
            memory.write(LOAD_ADDRESS, GUEST)
            machine.run(LOAD_ADDRESS)
    return bytes(machine.serial)


def main() -> int:
    """Read the command line, boot, and show what the guest printed; the exit status."""
    parser = argparse.ArgumentParser(description="Boot a guest that finds a VirtFS device and prints its mount tag.")
    parser.add_argument("tag", nargs="?", default="test_mount", help="the mount tag, 1 to 31 bytes (%(default)s)")
    try:
        printed = boot(parser.parse_args().tag)
    except ConfigError as error:
        print(f"unicorn_pci: {error}", file=sys.stderr)
        return 2
    sys.stdout.buffer.write(printed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
