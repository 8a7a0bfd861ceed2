"""`pyvirtfs demo`: the whole way of a mount, as a transcript."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from typing import TYPE_CHECKING

import click

from pyvirtfs.cli.devices import FIRST_SLOT, DeviceSettings
from pyvirtfs.cli.session import MOUNT_POINT, MSIZE, Guest, guest_with

if TYPE_CHECKING:
    from pyvirtfs.guest import Channel, Mount

MOUNT_TAG = "test_mount"
GREETING_NAME, GREETING = "virtfs_file", "Hi Guest\n"
ANSWER_NAME, ANSWER = "from_guest", "Hi Host\n"
_MOST_ROWS = 20

_EPILOG = """\b
Examples:
  pyvirtfs demo
  pyvirtfs demo /srv/shared
"""


@click.command(epilog=_EPILOG)
@click.argument("folder", metavar="[DIR]", default="")
@click.option("--trace", is_flag=True, help="Also print each 9P message.")
def demo(folder: str, trace: bool) -> None:
    """A guest finds a virtio-9p-pci function on its PCI bus, mounts DIR, reads virtfs_file and writes a file.

    Without DIR it is a folder that is removed in the end. In DIR, virtfs_file is made if it is missing, and what the
    guest writes stays; nothing that was there is changed.
    """
    from pyvirtfs.fsdev.options import FsdevOptions

    with contextlib.ExitStack() as stack:
        kept = bool(folder)
        folder = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="pyvirtfs-demo-"))
        settings = DeviceSettings(
            fsdev=FsdevOptions("local", "demo", {"path": folder, "security_model": "none"}),
            mount_tag=MOUNT_TAG,
            slot=FIRST_SLOT,
        )
        guest = stack.enter_context(guest_with(settings, _message if trace else None))
        _host_before(folder)
        _pci(guest)
        channel = guest.bring_up()
        _negotiated(channel)
        with guest.mount(channel, msize=MSIZE) as mounted:
            answer = _inside(guest, mounted)
        _host_after(folder, answer)
        _closing(guest, channel)
        if not kept:
            click.echo("The folder is removed now. To keep what the guest writes: pyvirtfs demo DIR")


def _host_before(folder: str) -> None:
    """Show the export; make the file that the guest will read, if it is not there."""
    path = os.path.join(folder, GREETING_NAME)
    _title(f"Host: {folder} is exported as {MOUNT_TAG}")
    with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
        file.write(GREETING)
    _prompt("$", f"cat {path}")
    _content(path)


def _pci(guest: Guest) -> None:
    _title("Guest: what its PCI bus has")
    function = guest.find()
    for found in guest.machine.functions:
        for line in found.describe() if found is function else [str(found)]:
            click.echo(f"  {line}")


def _negotiated(channel: Channel) -> None:
    from pyvirtfs.virtio import features
    from pyvirtfs.virtio9p import FEATURE_NAMES

    driver = channel.driver
    names = " ".join(features.names(driver.features, FEATURE_NAMES))
    _title("Guest: its virtio driver takes the device into use")
    click.echo(f"  features {driver.features:#x}: {names}")
    click.echo(f"  status {driver.status:#04x}, {len(driver.queues)} queue of {channel.queue.ring.size} descriptors")
    click.echo(f"  mount tag {os.fsdecode(channel.tag)}")


def _inside(guest: Guest, mounted: Mount) -> str:
    """What a user of the guest does; returns the name of the file that was written."""
    from pyvirtfs.cli.listing import Row, long_lines, total_line

    _title("Guest: a user at work")
    options = f"trans=virtio,version=9p2000.L,msize={MSIZE}"
    _prompt("#", f"mount -t 9p -o {options} {mounted.tag} {MOUNT_POINT} && mount | grep 9p")
    click.echo(f"  {guest.mount_line(mounted)}")
    _prompt("#", f"ls -l {MOUNT_POINT}")
    paths = sorted(mounted.root.iterdir())
    rows = [Row(path.name, path.lstat(), path.readlink() if path.is_symlink() else None) for path in paths[:_MOST_ROWS]]
    for line in [total_line(rows), *long_lines(rows)]:
        click.echo(f"  {line}")
    if len(paths) > len(rows):
        click.echo(f"  ... and {len(paths) - len(rows)} more")
    _prompt("#", f"cat {MOUNT_POINT}/{GREETING_NAME}")
    _lines((mounted.root / GREETING_NAME).read_text(errors="replace"))
    answer = _write(mounted)
    _prompt("#", f"echo '{ANSWER.rstrip()}' > {MOUNT_POINT}/{answer}")
    return answer


def _write(mounted: Mount) -> str:
    """Write a new file, whatever names are taken; returns its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for number in itertools.count():
        name = f"{ANSWER_NAME}.{number}" if number else ANSWER_NAME
        with contextlib.suppress(FileExistsError), (mounted.root / name).open_raw(flags) as file:
            file.write(ANSWER.encode())
            return name
    raise AssertionError  # itertools.count never ends


def _host_after(folder: str, answer: str) -> None:
    path = os.path.join(folder, answer)
    _title("Host: what the guest has written")
    _prompt("$", f"cat {path}")
    _content(path)


def _closing(guest: Guest, channel: Channel) -> None:
    counters = channel.driver.counters
    _title(
        f"{guest.device.server.counters.requests} requests, {counters.kicks} kicks, "
        f"{counters.queue_interrupts} interrupts"
    )


def _content(path: str) -> None:
    with open(path, encoding="utf-8", errors="replace") as file:
        _lines(file.read())


def _lines(text: str) -> None:
    for line in text.splitlines():
        click.echo(f"  {line}")


def _title(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _prompt(sign: str, command: str) -> None:
    click.echo(f"  {sign} {command}")


def _message(line: str) -> None:
    click.secho(f"    {line}", dim=True)
