"""The command `pyvirtfs`: its group, and the one place where an exception becomes a line and an exit status.

Exit status: 0 well, 1 the host said no (`OSError`), 2 the command line is wrong, 130 interrupted. If nobody reads
on, as when the output goes to `head`, it is 1 without a word.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from pyvirtfs._version import __version__
from pyvirtfs.errors import ConfigError, DeviceError

COMMANDS = {
    "demo": "A guest mounts a folder of this machine, step by step.",
    "shell": "An interactive guest on an export: ls, cat, put, get, ...",
    "qemu": "Run QEMU with these devices in place of its own.",
    "serve": "Serve devices to virtual machines over vfio-user.",
    "libvirt": "Serve the 9p file systems of a libvirt domain.",
    "lspci": "Show the PCI function as pciutils would.",
    "doctor": "What this machine offers to an export, and what is missing.",
}
"""Name and help in one line of each command. It lives in the module `pyvirtfs.cli.NAME`, loaded when it is used."""

_EXAMPLES = """\b
Examples:
  pyvirtfs demo
  pyvirtfs shell -virtfs local,path=/srv/data,mount_tag=data,security_model=none
  pyvirtfs qemu -- qemu-system-x86_64 -m 2G ... -virtfs local,path=/srv,mount_tag=srv,security_model=none
  pyvirtfs serve -virtfs local,path=/srv,mount_tag=srv,security_model=none --socket /run/srv.sock
  pyvirtfs lspci -vv
  pyvirtfs lspci -device virtio-9p-pci,help
"""


class CommandGroup(click.Group):
    """A group that imports a command's module only when that command is run or its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a newcomer meets them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; None if there is no such command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"pyvirtfs.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with an error that names the commands there are."""
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            raise ConfigError(name, "there is no such command", COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing one of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=CommandGroup,
    invoke_without_command=True,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", prog_name="pyvirtfs", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """The VirtFS device (virtio-9p-pci) on the command line.

    Every command has examples in its own --help.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; never lets an exception of a person's or a host's making become a traceback.

    Args:
        arguments: What stands behind the name of the command; `sys.argv[1:]` if None.

    Returns:
        The exit status.
    """
    if sys.stdout is None:
        return _fail("the standard output is closed", 1)
    status = _run(arguments)
    for stream in (sys.stdout, sys.stderr):
        if not _flushed(stream):  # the interpreter would try again when it ends, and say so in words of its own
            status = status or 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def _run(arguments: Sequence[str] | None) -> int:
    """The exit status of the command; one line tells what went wrong."""
    try:
        status = cli.main(args=arguments, prog_name="pyvirtfs", standalone_mode=False)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(str(error), 2)
    except click.UsageError as error:
        return _fail(_usage_line(error), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # click and rich end with SystemExit(1) if this happens while they write; here it was the last flush.
        return 1
    except OSError as error:
        where = "" if _flushed(sys.stdout) else "standard output: "
        if error.filename is not None:
            where = f"{os.fsdecode(error.filename)}: "
        return _fail(f"{where}{error.strerror or error}", 1)
    except DeviceError as error:
        return _fail(str(error), 1)
    return status if isinstance(status, int) else 0


def _flushed(stream: TextIO | None) -> bool:
    """Whether everything that was printed has left; there is nothing left of a stream that was closed."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return False
    return True


def _usage_line(error: click.UsageError) -> str:
    """What click says in three lines, in one, with the choices named."""
    if isinstance(error, click.NoSuchOption):
        known = sorted({name for parameter in error.ctx.command.params for name in parameter.opts}) if error.ctx else ()
        return str(ConfigError(error.option_name, "there is no such option", known))
    return " ".join(error.format_message().split())


def _fail(line: str, status: int) -> int:
    if sys.stderr is not None:  # print would take the standard output instead
        with contextlib.suppress(OSError):
            print(f"pyvirtfs: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
