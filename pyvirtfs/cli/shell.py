"""`pyvirtfs shell`: an interactive guest on an export."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from pyvirtfs.cli.devices import DeviceCommand, device_options, only_device
from pyvirtfs.cli.session import MSIZE, guest_with

if TYPE_CHECKING:
    from rich.progress import Progress

    from pyvirtfs.cli.shell_commands import Commands

_EPILOG = """\b
Examples:
  pyvirtfs shell -virtfs local,path=/srv/data,mount_tag=data,security_model=none
  pyvirtfs shell -virtfs local,path=.,mount_tag=here,security_model=none -c 'ls -l; df'
  echo 'get notes.txt' | pyvirtfs shell -virtfs local,path=.,mount_tag=here,security_model=none
  pyvirtfs shell -fsdev local,id=fs0,path=/srv,security_model=passthrough,readonly=on \\
      -device virtio-9p-pci,fsdev=fs0,mount_tag=srv --trace
"""


@click.command(cls=DeviceCommand, epilog=_EPILOG)
@device_options
@click.option("-c", "line", metavar="COMMANDS", help="Run these commands, separated by ';', instead of reading any.")
@click.option("--trace", is_flag=True, help="Print each 9P message on the standard error.")
@click.option(
    "--msize", type=click.IntRange(4096, MSIZE), default=MSIZE, show_default=True, help="Largest message, in bytes."
)
def shell(
    virtfs: tuple[str, ...], fsdev: tuple[str, ...], device: tuple[str, ...], line: str | None, trace: bool, msize: int
) -> int:
    """Mount an export in a simulated guest and take commands: ls, cat, put, get, rm, ... ('help' lists them).

    Everything goes through the device: the driver in the guest, its virtqueue, 9P messages. The exit status is that of
    the last command, 0 or 1.
    """
    from pyvirtfs.cli.shell_commands import Commands

    settings = only_device(virtfs, fsdev, device)
    with (
        guest_with(settings, trace=_tell if trace else None) as guest,
        guest.mount(guest.bring_up(), msize=msize) as mounted,
    ):
        commands = Commands(
            mounted,
            guest.mount_line(mounted),
            echo=click.echo,
            complain=_tell,
            binary=sys.stdout.buffer,
            progress=_progress if sys.stderr.isatty() else None,
            set_trace=lambda on: guest.set_trace(_tell if on else None),
        )
        return _run(commands, iter([line]) if line is not None else _lines(commands))


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


def _run(commands: Commands, lines: Iterator[str]) -> int:
    """Run all commands; the exit status of the last one."""
    status = 0
    for line in lines:
        try:
            for words in split(line):
                status = 0 if commands.run(words) else 1
        except ValueError as error:
            _tell(f"shell: {error}")
            status = 1
        except EOFError:
            break
    return status


def _lines(commands: Commands) -> Iterator[str]:
    """What is typed, with a prompt, a history and completion; or the lines of the standard input."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    _prepare_readline(commands)
    click.echo("A guest with the mount that 'mount' shows. 'help' lists the commands, 'exit' or Ctrl-D leaves.")
    while True:
        try:
            yield input(f"{commands.cwd}$ ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("^C")


def _prepare_readline(commands: Commands) -> None:
    """Complete names of commands, guest's files, and nothing of the host's."""
    try:
        import readline
    except ImportError:  # a Python without it still reads lines
        return
    from pyvirtfs.cli.shell_commands import COMMANDS

    def complete(text: str, state: int) -> str | None:
        if readline.get_begidx() == 0:
            candidates = [f"{name} " for name in COMMANDS]
        else:
            folder, slash, _ = text.rpartition("/")
            candidates = []
            with contextlib.suppress(OSError):
                for entry in commands.path(folder + slash or ".").iterdir():
                    candidates.append(f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ' '}")
        matches = sorted(name for name in candidates if name.startswith(text))
        return matches[state] if state < len(matches) else None

    readline.set_completer_delims(" \t\n;")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


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
