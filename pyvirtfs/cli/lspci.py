"""`pyvirtfs lspci`: the PCI function in the words of pciutils."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from pyvirtfs.cli.devices import DeviceCommand, device_options, devices_from
from pyvirtfs.pci.lspci import Names, describe
from pyvirtfs.virtio import layout

if TYPE_CHECKING:
    from pyvirtfs.pci import PciFunction

_EPILOG = """\b
Examples:
  pyvirtfs lspci
  pyvirtfs lspci -vv
  pyvirtfs lspci -xxx > dump && lspci -F dump -vv
  pyvirtfs lspci -vv -virtfs local,path=/srv,mount_tag=srv,security_model=none
  pyvirtfs lspci -device virtio-9p-pci,help
"""

_EXAMPLE = "local,path=.,mount_tag=test_mount,security_model=none,readonly=on"
"""Shown if the command line describes no device; nobody touches the folder."""


_DUMP_NBYTES = {1: 64, 2: 64, 3: 256}
_STRUCTURES = {
    layout.CFG_COMMON: "CommonCfg",
    layout.CFG_NOTIFY: "Notify",
    layout.CFG_ISR: "ISR",
    layout.CFG_DEVICE: "DeviceCfg",
}
_VENDORS = {layout.VENDOR_ID: "Red Hat, Inc."}
_DEVICES = {(layout.VENDOR_ID, layout.MODERN_DEVICE_ID_BASE + 9): "Virtio 1.0 filesystem"}
"""As the PCI ID repository has it; guests show the same."""


@click.command(cls=DeviceCommand, epilog=_EPILOG)
@click.option("-v", "verbose", count=True, help="Describe the whole function, as lspci -vv does.")
@click.option("-x", "dump", count=True, help="Dump configuration space: -x 64 bytes, -xxx 256, -xxxx all.")
@click.option("-nn", "numbers", is_flag=True, help="Names and numbers of ids, which is how they are shown anyway.")
@click.option("--unplaced", is_flag=True, help="As after a reset, before a guest has placed the BARs.")
@click.option("--express", is_flag=True, help="As behind a PCI Express port.")
@device_options
def lspci(
    verbose: int,
    dump: int,
    numbers: bool,  # noqa: ARG001 (accepted for those who are used to it)
    unplaced: bool,
    express: bool,
    virtfs: tuple[str, ...],
    fsdev: tuple[str, ...],
    device: tuple[str, ...],
) -> None:
    """Show the PCI function of each device (default: an example) as pciutils' lspci would.

    What -x prints can be read by 'lspci -F FILE'.
    """
    from pyvirtfs.guest import Machine
    from pyvirtfs.pci.hexdump import hex_dump

    settings = devices_from(virtfs, fsdev, device) or devices_from([_EXAMPLE], [], [])
    machine = Machine()
    with contextlib.ExitStack() as stack:
        functions = {}
        for one in settings:
            function = stack.enter_context(one.open(machine.memory, express=express))
            machine.plug(function, one.slot, one.function)
            functions[f"00:{one.slot:02x}.{one.function:x}"] = function
        if not unplaced:
            machine.probe()
        for slot, function in sorted(functions.items()):
            text = _describe(function, slot)
            first = text.splitlines()[0]
            if dump:
                config = bytes(function.config.data[: _DUMP_NBYTES.get(dump)])
                text = hex_dump(config, slot=slot, title=first.partition(" ")[2])
                if verbose:
                    text = _describe(function, slot) + text.partition("\n")[2]
                click.echo(text, nl=False)
            else:
                click.echo(text if verbose else first)


def virtio_capability(data: bytes) -> list[str] | None:
    """The text of a virtio structure capability (virtio 1.3, 4.1.4), in pciutils' words; None if it is too short."""
    if data[2] < layout.VirtioPciCap.sizeof():
        return None
    cap = layout.VirtioPciCap.parse(data)
    line = f"BAR={cap.bar} offset={cap.offset:08x} size={cap.length:08x}"
    if cap.cfg_type == layout.CFG_NOTIFY and cap.cap_len >= layout.VirtioPciNotifyCap.sizeof():
        line += f" multiplier={layout.VirtioPciNotifyCap.parse(data).notify_off_multiplier:08x}"
    return [f"VirtIO: {_STRUCTURES.get(cap.cfg_type, '<unknown>')}", line]


def _describe(function: PciFunction, slot: str) -> str:
    return describe(
        bytes(function.config.data),
        slot=slot,
        names=Names(vendors=_VENDORS, devices=_DEVICES),
        vendor_decoders={layout.VENDOR_ID: virtio_capability},
        bar_sizes={bar.index: bar.nbytes for bar in function.bars.values()},
    )
