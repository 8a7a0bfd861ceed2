"""`pyvirtfs qemu`: a QEMU command line that has 9p devices, run with ours in their places."""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pyvirtfs.cli.devices import DeviceSettings, devices_from, import_option
from pyvirtfs.cli.logs import log_options, logging_to_stderr
from pyvirtfs.errors import ConfigError

if TYPE_CHECKING:
    from pyvirtfs.vmm.qemu_devices import TakenDevice, TakenDevices

_EPILOG = """\b
Examples:
  pyvirtfs qemu -- qemu-system-x86_64 -m 2G -drive file=disk.img \\
      -virtfs local,path=/srv,mount_tag=srv,security_model=none
  pyvirtfs qemu --dry-run -- qemu-system-x86_64 -m 2G \\
      -fsdev local,id=fs0,path=/srv,security_model=none -device virtio-9p-pci,fsdev=fs0,mount_tag=srv
"""

_PREFIX = "pyvirtfs-"

_log = logging.getLogger(__name__)


@click.command(epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.option("--dry-run", is_flag=True, help="Print the command line that QEMU would get, and start nothing.")
@click.option("--strict-memory", is_flag=True, help="Refuse guest RAM that can shrink, such as -mem-path FILE.")
@log_options("warning")
@import_option
@click.argument("command", metavar="-- QEMU [OPTION]...", nargs=-1, type=click.UNPROCESSED)
def qemu(
    command: tuple[str, ...],
    dry_run: bool,
    strict_memory: bool,
    log_format: str,
    log_level: str,
    trace: int,
) -> int:
    """Run QEMU (10.1 or newer) with the command line that you have, and pyvirtfs' devices in place of its own.

    Each -virtfs, and each -device virtio-9p-pci with its -fsdev, becomes a vfio-user-pci device at the same place. The
    guest's RAM becomes shared: a backend that you name gets share=on, -mem-path a file backend with share=on, and else
    a memfd is added. Everything else goes to QEMU as it is. SIGTERM, SIGINT and SIGHUP go to QEMU, and its exit status
    is the one of this command.
    """
    from pyvirtfs.cli.serving import socket_base
    from pyvirtfs.vmm import qemu_arguments, qemu_devices, qemu_program

    if not command:
        raise ConfigError("QEMU", "say what to run, for example: pyvirtfs qemu -- qemu-system-x86_64 -m 1G ...")
    program, *words = command
    with logging_to_stderr(log_format, log_level, trace):
        taken = qemu_devices.take(qemu_arguments.parse(words))
        if not taken.devices:
            _log.warning("there is no virtio-9p-pci device on QEMU's command line, which is run as it is")
            if dry_run:
                click.echo(shlex.join(command))
                return 0
            return qemu_program.run(command, _nothing, _nothing)
        settings = [_settings(device) for device in taken.devices]
        named = [one.fsdev.id or one.mount_tag for one, at in zip(settings, taken.devices, strict=True) if at.virtfs]
        for name in named:
            if named.count(name) > 1:
                raise ConfigError("-virtfs", f"two exports have the id {name!r}: give one of them another id=")
        folder = os.path.join(socket_base(), f"{_PREFIX}XXXXXXXX")  # as shown: the real one is made when it is needed
        changed, warnings = _changed(taken, _paths(folder, len(settings)), strict_memory)
        for warning in warnings:
            _log.warning("%s", warning)
        if dry_run:
            for one in settings:
                one.check()
            click.echo(shlex.join([program, *changed]))
            return 0
        qemu_program.check(program)
        return _run(program, taken, settings, strict_memory=strict_memory, trace=trace)


def _run(
    program: str, taken: TakenDevices, settings: Sequence[DeviceSettings], *, strict_memory: bool, trace: int
) -> int:
    """Make the devices, run QEMU beside them, and leave nothing behind; its exit status."""
    from pyvirtfs.cli.serving import OpenFiles, Service, socket_base
    from pyvirtfs.vmm import qemu_program

    with (
        qemu_program.Signals() as signals,
        OpenFiles() as limit,
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=socket_base()) as folder,
        Service(strict_memory=strict_memory, trace=trace) as service,
    ):
        paths = _paths(folder, len(settings))
        with limit.shared_by(len(settings)):
            for device, one, path in zip(taken.devices, settings, paths, strict=True):
                service.add(one, path, express=device.express)
        words, _ = _changed(taken, paths, strict_memory)
        return qemu_program.run(
            [program, *words], service.run, service.stop, signals=signals, around_start=limit.as_before()
        )


def _settings(device: TakenDevice) -> DeviceSettings:
    """What one device of QEMU's command line is to us."""
    if device.virtfs is not None:
        (found,) = devices_from([device.virtfs], [], [])
    else:
        (found,) = devices_from([], [device.fsdev] if device.fsdev else [], [device.device] if device.device else [])
    return found


def _changed(taken: TakenDevices, sockets: Sequence[str], strict: bool) -> tuple[list[str], list[str]]:
    """QEMU's command line without its 9p devices, behind the name of the program; and warnings."""
    from pyvirtfs.vmm import qemu_arguments, qemu_memory

    arguments, warnings = qemu_memory.share(taken.attached(sockets), strict=strict)
    return qemu_arguments.words(arguments), [*taken.warnings, *warnings]


def _paths(folder: str, count: int) -> list[str]:
    return [os.path.join(folder, f"9p{number}.sock") for number in range(count)]


def _nothing() -> None:
    """There is nothing to serve."""
