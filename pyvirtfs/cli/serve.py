"""`pyvirtfs serve`: devices behind vfio-user sockets for virtual machines, exports behind sockets for 9P clients."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pyvirtfs.cli.devices import EXAMPLE, DeviceCommand, DeviceSettings, device_options, devices_from
from pyvirtfs.cli.logs import extra, log_options, logging_to_stderr
from pyvirtfs.errors import ConfigError

if TYPE_CHECKING:
    from pyvirtfs.cli.serving import Service
    from pyvirtfs.fsdev.options import FsdevOptions

_EPILOG = """\b
Examples:
  pyvirtfs serve -virtfs local,path=/srv,mount_tag=srv,security_model=none --socket /run/srv.sock
  mkdir -p /run/pyvirtfs
  pyvirtfs serve -virtfs local,path=/a,mount_tag=a,security_model=none \\
      -virtfs local,path=/b,mount_tag=b,security_model=none --socket /run/pyvirtfs/
  pyvirtfs serve -fsdev local,id=srv,path=/srv,security_model=none --listen unix:/run/srv.9p
  pyvirtfs serve -fsdev local,id=srv,path=/srv,security_model=none,readonly=on \\
      --listen tcp:5640 --allow-unauthenticated-tcp
"""

RAM = "-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem"
"""What QEMU needs once, however many devices there are; SIZE as behind its -m."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FIRST_OWN_FD = 3

_log = logging.getLogger(__name__)


@click.command(cls=DeviceCommand, epilog=_EPILOG)
@device_options
@click.option(
    "--socket",
    "sockets",
    metavar="PATH",
    multiple=True,
    help="Where a client attaches: one for each device, in their order (-virtfs first); or a folder, with a slash at "
    "its end, that gets TAG.sock for each. Folders are not made.",
)
@click.option(
    "--listen",
    "listens",
    metavar="ADDRESS",
    multiple=True,
    help="Where 9P clients connect, without a virtual machine: unix:PATH, tcp:PORT (of 127.0.0.1) or tcp:HOST:PORT; "
    "one for each -fsdev that no -device has (and each -virtfs, if there is no --socket), in their order; or "
    "unix:DIR/, which gets ID.sock for each. Folders are not made.",
)
@click.option(
    "--allow-unauthenticated-tcp",
    "allow_tcp",
    is_flag=True,
    help="Let everybody in who reaches the TCP ports of --listen. A unix socket is for this user and root only.",
)
@click.option("--pidfile", metavar="PATH", help="Write the process id there; refused while another process has it.")
@click.option(
    "--ready-fd",
    metavar="N",
    help="Write the line READY to this descriptor as soon as clients can connect, and close it. Without it the line is "
    "printed.",
)
@click.option("--express", is_flag=True, help="Show PCI Express capabilities, as behind a PCI Express port.")
@click.option("--strict-memory", is_flag=True, help="Refuse guest RAM that can shrink, such as a file's.")
@log_options("info")
def serve(
    virtfs: tuple[str, ...],
    fsdev: tuple[str, ...],
    device: tuple[str, ...],
    sockets: tuple[str, ...],
    listens: tuple[str, ...],
    allow_tcp: bool,
    pidfile: str | None,
    ready_fd: str | None,
    express: bool,
    strict_memory: bool,
    log_format: str,
    log_level: str,
    trace: int,
) -> None:
    """Serve devices over vfio-user, and exports over 9P, until SIGTERM or Ctrl-C.

    With --socket, prints what QEMU (10.1 or newer) needs on its command line to attach. One client at a time has a
    device; when it leaves the next one gets it, as after a reset. With --listen, prints how Linux mounts the export; it
    has up to 256 clients. At the end of each connection a line sums it up.
    """
    from pyvirtfs.cli.listening import export_name, given_away, listen_addresses, mount_command, open_listener
    from pyvirtfs.cli.serving import OpenFiles, Service
    from pyvirtfs.stream import TcpListener
    from pyvirtfs.vmm.qemu_devices import attachment, split_device

    split = [split_device(text) for text in device]
    plain: list[FsdevOptions] = []
    settings = devices_from(virtfs, fsdev, [text for text, _ in split], spare=plain)
    if plain and not listens:
        problem = (
            f"no -device has fsdev={plain[0].id}: it needs one, or a --listen for clients without a virtual machine"
        )
        raise ConfigError("-fsdev", problem)
    if listens and not sockets:  # then a -virtfs is an export and no device
        plain = [one.fsdev for one in settings[: len(virtfs)]] + plain
        settings, virtfs = settings[len(virtfs) :], ()
    if not (settings or plain or listens):
        raise ConfigError("-virtfs", f"say which folder is to be served, for example {EXAMPLE}")
    addresses = listen_addresses(listens, plain, allow_tcp=allow_tcp)
    placements: list[dict[str, Any]] = [{} for _ in virtfs] + [placement for _, placement in split]
    paths = socket_paths(sockets, settings)
    ready = None if ready_fd is None else ready_descriptor(ready_fd)
    with (
        logging_to_stderr(log_format, log_level, trace),
        own_pidfile(pidfile),
        OpenFiles() as limit,
        Service(strict_memory=strict_memory, trace=trace) as service,
        stopped_by_signals(service),
    ):
        mounts = []
        with limit.shared_by(len(settings) + len(plain)):
            for one, path in zip(settings, paths, strict=True):
                service.add(one, path, express=express)
            for export, address in zip(plain, addresses, strict=True):
                listener = open_listener(address)
                service.add_stream(export, listener, export_name(export))
                if isinstance(listener, TcpListener):
                    _log.warning("%s", given_away(listener.host, listener.port, export))
                mounts.append(mount_command(listener))
        for line in mounts:
            click.echo(line)
        if settings:
            click.echo(RAM)
        for path, placement in zip(paths, placements, strict=True):
            click.echo(f"-device {shlex.quote(attachment(path, placement))}")
        tell_ready(ready)
        service.run()


def socket_paths(sockets: Sequence[str], settings: Sequence[DeviceSettings]) -> list[str]:
    """The absolute path of each device's socket.

    Raises:
        ConfigError: There are not as many as devices, or a tag makes no name of a file.
    """
    if not settings:
        if sockets:
            raise ConfigError("--socket", "there is no device for it; an export without one has --listen")
        return []
    if not sockets:
        raise ConfigError("--socket", "say where clients are to attach, for example --socket /tmp/virtfs.sock")
    if len(sockets) == 1 and sockets[0].endswith("/"):
        tags = [one.mount_tag for one in settings]
        for tag in tags:
            if "/" in tag or "\0" in tag or tags.count(tag) > 1:
                raise ConfigError("--socket", f"mount_tag={tag} makes no name of a socket: give each device a --socket")
        return [os.path.abspath(os.path.join(sockets[0], f"{tag}.sock")) for tag in tags]
    if len(sockets) != len(settings):
        raise ConfigError(
            "--socket",
            f"there are {len(settings)} devices and {len(sockets)} sockets: "
            "give each device one, or a folder with a slash at its end for all of them",
        )
    return [os.path.abspath(path) for path in sockets]


def ready_descriptor(text: str) -> int:
    """A descriptor that somebody has opened for us to write to."""
    if text.isascii() and text.isdecimal() and int(text) >= _FIRST_OWN_FD:
        number = int(text)
        with contextlib.suppress(OSError, OverflowError):
            if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                os.set_inheritable(number, False)
                return number
    raise ConfigError("--ready-fd", f"{text!r} is no descriptor from {_FIRST_OWN_FD} on that is open for writing")


@contextlib.contextmanager
def stopped_by_signals(service: Service) -> Iterator[None]:
    """Inside of the block, signals that end programs end the service; but those that are ignored, as by nohup(1)."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        service.stop()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
        service.close()  # while a second signal does no harm
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def own_pidfile(path: str | None) -> Iterator[None]:
    """Have a file with the process id while the block runs, locked as long as this process lives.

    Raises:
        ConfigError: It cannot be made, or another process holds it.
    """
    if path is None:
        yield
        return
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise ConfigError("--pidfile", f"{path!r} cannot be made: {error.strerror}") from None
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError("--pidfile", f"{path!r} belongs to a process that runs") from None
        os.ftruncate(fd, 0)
        os.fchmod(fd, 0o644)
        os.write(fd, b"%d\n" % os.getpid())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(fd)):
                    os.unlink(path)
    finally:
        os.close(fd)


def tell_ready(descriptor: int | None, *, err: bool = False) -> None:
    """Say that clients can connect: on the descriptor, which is closed then, or on the standard output (or error)."""
    if descriptor is None:
        click.echo("READY", err=err)
    else:
        try:
            os.write(descriptor, b"READY\n")
        except OSError as error:  # whoever wanted to know is gone, and the clients may come all the same
            _log.warning("--ready-fd: nobody was told: %s", error.strerror)
        finally:
            os.close(descriptor)
    _log.info("ready", extra=extra(event="ready", pid=os.getpid()))
