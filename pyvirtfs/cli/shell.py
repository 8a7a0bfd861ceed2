"""`pyvirtfs shell`: an interactive guest on an export."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from pyvirtfs.cli.devices import DeviceCommand, device_options, only_device
from pyvirtfs.cli.listing import printable
from pyvirtfs.cli.session import MSIZE, guest_with
from pyvirtfs.errors import ConfigError
from pyvirtfs.p9.constants import MIN_MSIZE

if TYPE_CHECKING:
    from rich.progress import Progress

    from pyvirtfs.cli.interruption import Interruption
    from pyvirtfs.cli.shell_commands import Commands
    from pyvirtfs.guest import Mount

INTERRUPTED = 130
"""The status of a command that Ctrl-C has ended, as shells have it."""

_SPECIAL = frozenset(" '\"\\;#")
"""What would have to be quoted, and is left to whoever types it."""

_EPILOG = """\b
Examples:
  pyvirtfs shell -virtfs local,path=/srv/data,mount_tag=data,security_model=none
  pyvirtfs shell -virtfs local,path=.,mount_tag=here,security_model=none -c 'ls -l; df'
  echo 'get notes.txt' | pyvirtfs shell -virtfs local,path=.,mount_tag=here,security_model=none
  pyvirtfs shell -fsdev local,id=fs0,path=/srv,security_model=passthrough,readonly=on \\
      -device virtio-9p-pci,fsdev=fs0,mount_tag=srv --trace
"""


def _msize(_ctx: click.Context, _parameter: click.Parameter, text: str) -> int:
    if not text.isdecimal() or not MIN_MSIZE <= int(text) <= MSIZE:
        raise ConfigError("--msize", f"{text!r} is not a number from {MIN_MSIZE} to {MSIZE}")
    return int(text)


@click.command(cls=DeviceCommand, epilog=_EPILOG)
@device_options
@click.option("-c", "line", metavar="COMMANDS", help="Run these commands, separated by ';', instead of reading any.")
@click.option("--trace", is_flag=True, help="Print each 9P message on the standard error.")
@click.option(
    "--msize",
    metavar="BYTES",
    default=str(MSIZE),
    show_default=True,
    callback=_msize,
    help=f"Largest message, {MIN_MSIZE} to {MSIZE}.",
)
def shell(
    virtfs: tuple[str, ...], fsdev: tuple[str, ...], device: tuple[str, ...], line: str | None, trace: bool, msize: int
) -> int:
    """Mount an export in a simulated guest and take commands: ls, cat, put, get, rm, ... ('help' lists them).

    Everything goes through the device: the driver in the guest, its virtqueue, 9P messages. The exit status is that of
    the last command, 0 or 1. Ctrl-C ends a command; a second one ends it even if the device hangs.
    """
    from pyvirtfs.cli.interruption import Interruption
    from pyvirtfs.cli.shell_commands import Commands
    from pyvirtfs.cli.shell_runner import OutputError

    settings = only_device(virtfs, fsdev, device)
    ctrl_c = Interruption()
    with guest_with(settings, trace=_tell if trace else None) as guest, contextlib.ExitStack() as stack:
        channel = guest.bring_up(ctrl_c.check)
        mounted = guest.mount(channel, msize=msize)
        commands = Commands(
            mounted,
            guest.mount_line(mounted, "/"),
            echo=click.echo,
            complain=_tell,
            binary=sys.stdout.buffer,
            progress=_progress if sys.stderr is not None and sys.stderr.isatty() else None,
            set_trace=lambda on: guest.set_trace(_tell if on else None),
            at_once=ctrl_c.at_once,
        )
        stack.callback(commands.close)  # after a Ctrl-C it may be the device that failed
        reader = _Reader(commands, ctrl_c, lambda: guest.remount(channel, msize=msize))
        try:
            return reader.run([line] if line is not None else reader.lines(), interactive=line is None and _is_typed())
        except OutputError as error:
            raise error.error from None


def split(line: str) -> list[list[str]]:
    """The words of each command of a line: quotes as in a shell, commands apart by ``;``, ``#`` begins a comment.

    Raises:
        ValueError: A quote is not closed.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) == {";"}:
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


class _Reader:
    """Reads command lines and runs them, one after the other.

    Args:
        commands: What there is to run.
        ctrl_c: Tells of interrupted commands.
        remount: Makes a new mount after one that was interrupted in the middle of something.
    """

    def __init__(self, commands: Commands, ctrl_c: Interruption, remount: Callable[[], Mount]) -> None:
        self.commands = commands
        self.ctrl_c = ctrl_c
        self.remount = remount

    def run(self, lines: Iterable[str], *, interactive: bool) -> int:
        """Run all lines; the exit status of the last command.

        Raises:
            KeyboardInterrupt: Ctrl-C, unless somebody types, who gets a new prompt then.
        """
        status = 0
        for line in lines:
            try:
                status = self._run_line(line, status)
            except EOFError:
                break
            except KeyboardInterrupt:
                if not interactive:
                    raise
                _tell(_shown_interrupt())
                status = INTERRUPTED
        return status

    def _run_line(self, line: str, status: int) -> int:
        """Run the commands of one line; the exit status of the last one, `status` if there is none."""
        ctrl_c = self.ctrl_c
        with ctrl_c.deferred():
            if ctrl_c.broken:
                self._recover()
            try:
                for words in split(line):
                    status = 0 if self.commands.run(words) else 1
                    if ctrl_c.broken:
                        break
            except ValueError as error:
                _tell(f"shell: {error}")
                status = 1
            except Exception:
                if not ctrl_c.broken:  # else: what tidying up on a dead channel led to
                    raise
            if ctrl_c.broken:
                raise KeyboardInterrupt
        return status

    def _recover(self) -> None:
        self.ctrl_c.broken = False
        try:
            self.commands.remounted(self.remount())
        except KeyboardInterrupt:
            self.ctrl_c.broken = True
            raise

    def lines(self) -> Iterator[str]:
        """What is typed, with a prompt, a history and completion; or the lines of the standard input."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # names are bytes, be they text or not
        if not _is_typed():
            yield from sys.stdin or ()
            return
        _prepare_readline(self.commands, self.ctrl_c)
        click.echo("A guest with the mount that 'mount' shows. 'help' lists the commands, 'exit' or Ctrl-D leaves.")
        while True:
            try:
                yield input(f"{printable(self.commands.cwd)}$ ")
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo("^C")


def _is_typed() -> bool:
    """Whether somebody sits at the standard input, which is None if it was closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def _shown_interrupt() -> str:
    """What is to be printed for a Ctrl-C: nothing but the end of the line if the terminal has echoed it itself."""
    import termios

    both = termios.ECHO | termios.ECHOCTL
    return "" if termios.tcgetattr(sys.stdin.fileno())[3] & both == both else "^C"


def _prepare_readline(commands: Commands, ctrl_c: Interruption) -> None:
    """Complete names of commands, guest's files, and nothing of the host's."""
    try:
        import readline
    except ImportError:  # a Python without it still reads lines
        return

    def complete(text: str, state: int) -> str | None:
        words = readline.get_line_buffer()[: readline.get_begidx()].rpartition(";")[2].split()
        matches: list[str] = []
        with contextlib.suppress(OSError), ctrl_c.deferred():
            matches = completions(commands, words, text)
        return matches[state] if state < len(matches) else None

    readline.set_completer_delims(" \t\n;")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


def completions(commands: Commands, words: list[str], text: str) -> list[str]:
    """What the last word of a line may become: a command, or a file of the guest's.

    Args:
        commands: Knows the guest's files.
        words: The words before it.
        text: What there is of it.

    Raises:
        OSError: Its folder cannot be listed.
    """
    from pyvirtfs.cli.shell_commands import COMMANDS
    from pyvirtfs.p9.constants import DT_DIR, DT_LNK

    if not words or words == ["help"]:
        return sorted(f"{name} " for name in COMMANDS if name.startswith(text))
    folder, slash, _ = text.rpartition("/")
    names = []
    for entry in commands.path(folder + slash or ".").scandir():
        name = f"{folder}{slash}{os.fsdecode(entry.name)}"
        if name.startswith(text) and name.isprintable() and not _SPECIAL & set(name):
            is_folder = entry.type == DT_DIR or (entry.type in {0, DT_LNK} and commands.path(name).is_dir())
            names.append(f"{name}{'/' if is_folder else ' '}")
    return sorted(names)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )


def _tell(line: str) -> None:
    click.echo(line, err=True)
