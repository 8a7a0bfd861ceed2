"""`pyvirtfs libvirt`: the 9p file systems of a libvirt domain behind vfio-user sockets, and what to change in it."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from pyvirtfs.cli.devices import DeviceSettings, devices_from
from pyvirtfs.cli.logs import log_options, logging_to_stderr
from pyvirtfs.cli.serve import own_pidfile, ready_descriptor, stopped_by_signals, tell_ready
from pyvirtfs.errors import ConfigError

if TYPE_CHECKING:
    from pyvirtfs.vmm.libvirt import Domain, Filesystem

_EPILOG = """\b
Examples:
  virsh dumpxml --inactive vm > vm.xml
  pyvirtfs libvirt --output vm-new.xml --print vm.xml
  virsh define vm-new.xml
  pyvirtfs libvirt --owner libvirt-qemu vm.xml

Keep vm.xml: it is what this command reads each time. Start it before the domain, and end it after.

libvirt does not know of these devices: give their PCI addresses to no others. Where AppArmor or SELinux confine QEMU,
allow it to use the sockets (AppArmor: '/run/pyvirtfs/** rw,' in /etc/apparmor.d/local/abstractions/libvirt-qemu).
"""

_FOLDER = "pyvirtfs"
_MOST_NBYTES = 16 << 20

_log = logging.getLogger(__name__)


@click.command(epilog=_EPILOG)
@click.option(
    "--socket",
    "folder",
    metavar="DIR",
    help="The folder for the sockets, one TARGET.sock each; it must be there. Without this option a folder is made for "
    "them: pyvirtfs/NAME/ in /run, or, if you are not root, in $XDG_RUNTIME_DIR.",
)
@click.option(
    "--owner", metavar="USER", help="Give the sockets to the user as whom libvirt runs QEMU. By default they are yours."
)
@click.option("--only", metavar="TARGET", multiple=True, help="Take only this file system; may be given several times.")
@click.option("--output", metavar="FILE", help="Write the whole changed domain there ('-': print it and nothing else).")
@click.option("--print", "print_only", is_flag=True, help="Only tell what is to be changed, and start nothing.")
@click.option("--pidfile", metavar="PATH", help="Write the process id there; refused while another process has it.")
@click.option(
    "--ready-fd",
    metavar="N",
    help="Write the line READY to this descriptor as soon as clients can connect, and close it. Without it the line is "
    "printed, on the standard error if --output is '-'.",
)
@click.option("--strict-memory", is_flag=True, help="Refuse guest RAM that can shrink, such as a file's.")
@log_options("info")
@click.argument("source", metavar="DOMAIN.xml")
def libvirt(
    source: str,
    folder: str | None,
    owner: str | None,
    only: tuple[str, ...],
    output: str | None,
    print_only: bool,
    pidfile: str | None,
    ready_fd: str | None,
    strict_memory: bool,
    log_format: str,
    log_level: str,
    trace: int,
) -> None:
    """Serve what each <filesystem> of a libvirt domain describes, until SIGTERM or Ctrl-C.

    DOMAIN.xml is what virsh dumpxml prints; '-' is the standard input. Prints what is to be changed in the domain, in
    which QEMU (10.1 or newer) is to attach to these devices instead of making its own: at the same PCI addresses, with
    the same tags. File systems of virtiofsd are not served: name the others with --only.
    """
    from pyvirtfs.cli.serving import OpenFiles, Service
    from pyvirtfs.vmm import libvirt as reading

    with logging_to_stderr(log_format, log_level, trace):
        domain = reading.read(_document(source), source, only)
        settings = [_settings(one) for one in domain.filesystems]
        base = _base(domain.name) if folder is None else os.path.abspath(folder)
        paths = [_path(base, one.target) for one in domain.filesystems]
        user = None if owner is None else _user(owner)
        if output is not None and os.path.exists(output) and os.path.exists(source):
            _check_other(output, source)
        for warning in domain.warnings:
            _log.warning("%s", warning)
        if print_only:
            for one, at in zip(settings, domain.filesystems, strict=True):
                with reading.naming(at.label):
                    one.check()
            _tell(domain, paths, output)
            return
        ready = None if ready_fd is None else ready_descriptor(ready_fd)
        with (
            own_pidfile(pidfile),
            _made(base if folder is None else None),
            OpenFiles() as limit,
            Service(strict_memory=strict_memory, trace=trace) as service,
            stopped_by_signals(service),
        ):
            with limit.shared_by(len(settings)):
                for one, at, path in zip(settings, domain.filesystems, paths, strict=True):
                    with reading.naming(at.label):
                        service.add(one, path, express=at.express)
                        if user is not None:
                            _give(path, user)
            _tell(domain, paths, output)
            tell_ready(ready, err=output == "-")
            service.run()


def _document(source: str) -> bytes:
    """The domain's XML."""
    if source == "-" and sys.stdin is None:
        raise ConfigError(source, "the standard input is closed")
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb") as file:
            document = file.read(_MOST_NBYTES + 1)
    except OSError as error:
        raise ConfigError(source, f"cannot be read: {error.strerror}") from None
    if len(document) > _MOST_NBYTES:
        raise ConfigError(source, f"is larger than {_MOST_NBYTES >> 20} MiB, which no domain is")
    return document


def _settings(filesystem: Filesystem) -> DeviceSettings:
    """What a file system is to us; how the client places it is not our matter."""
    from pyvirtfs.vmm.libvirt import naming
    from pyvirtfs.vmm.qemu_devices import split_device

    device, _ = split_device(filesystem.device)
    with naming(filesystem.label):
        (found,) = devices_from([], [filesystem.fsdev], [device])
    return found


def _base(name: str) -> str:
    """The folder for a domain's sockets that is taken by default; it is the same each time, as the domain has it."""
    top = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(top):
        raise ConfigError("--socket", "say where the sockets are to be: there is no $XDG_RUNTIME_DIR")
    if name in {"", ".", ".."}:
        raise ConfigError("--socket", f"say where the sockets are to be: {name!r} makes no name of a folder")
    return os.path.join(top, _FOLDER, urllib.parse.quote(name, safe=""))


def _path(base: str, target: str) -> str:
    """The socket of a file system, whose target is often written like a path."""
    return os.path.join(base, f"{urllib.parse.quote(target, safe='')}.sock")


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError, ValueError):
        raise ConfigError("--owner", f"there is no user {name!r}") from None


def _give(path: str, user: pwd.struct_passwd) -> None:
    try:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    except OSError as error:
        raise ConfigError("--owner", f"{path!r} cannot be given to {user.pw_name}: {error.strerror}") from None


@contextlib.contextmanager
def _made(folder: str | None) -> Iterator[None]:
    """Have a folder and the one around it while the block runs; what was there before stays.

    Others may pass through them, because QEMU may be another user; the sockets are their owner's alone.
    """
    made = []
    for path in () if folder is None else (os.path.dirname(folder), folder):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
            os.chmod(path, 0o711)  # noqa: S103  # its name is all that others learn
            made.append(path)
    try:
        yield
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # another one's sockets are in it
                os.rmdir(path)


def _check_other(output: str, source: str) -> None:
    if os.path.samefile(output, source):
        raise ConfigError("--output", f"{output!r} is the file that this command reads, and will have to read again")


def _tell(domain: Domain, paths: Sequence[str], output: str | None) -> None:
    """Print what is to be changed in the domain, or write it as it is to be."""
    from pyvirtfs.vmm import libvirt_changes
    from pyvirtfs.vmm.qemu_devices import attachment, split_device

    attachments = [
        attachment(path, split_device(one.device)[1]) for one, path in zip(domain.filesystems, paths, strict=True)
    ]
    if output is None:
        click.echo(libvirt_changes.parts(domain, attachments))
    elif output == "-":
        click.echo(libvirt_changes.changed(domain, attachments), nl=False)
    else:
        document = libvirt_changes.changed(domain, attachments)
        try:
            file = open(output, "wb")  # noqa: SIM115  # what fails later is no mistake of the person's
        except OSError as error:
            raise ConfigError("--output", f"{output!r} cannot be made: {error.strerror}") from None
        with file:
            file.write(document)
        click.echo(f"{output}: the changed domain, for virsh define (QEMU 10.1 or newer)")
