"""What the shell's guest can do, in the manner of coreutils: the commands of all modules, and those about the shell."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyvirtfs.cli.shell_attributes import Attributes
from pyvirtfs.cli.shell_copying import Copying
from pyvirtfs.cli.shell_looking import Looking
from pyvirtfs.cli.shell_naming import Naming
from pyvirtfs.cli.shell_open_files import OpenFiles
from pyvirtfs.cli.shell_runner import COMMANDS, CommandError, UsageError, command
from pyvirtfs.cli.shell_users import Users
from pyvirtfs.errors import DeviceError

if TYPE_CHECKING:
    from pyvirtfs.guest import Mount

__all__ = ["COMMANDS", "Commands"]  # all of them are known here


class Commands(Looking, Copying, Naming, Attributes, OpenFiles, Users):
    """All commands, one method for each: see `Runner` for what they work on."""

    @command("trace on|off", "print each 9P message, or do not")
    def trace(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """One line for each request and each reply."""
        if operands[0] not in {"on", "off"}:
            raise UsageError
        self.set_trace(operands[0] == "on")

    @command("help [COMMAND]", "show the commands")
    def help(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """One line for each."""
        if operands and operands[0] not in COMMANDS:
            raise CommandError(f"there is no command {operands[0]!r}")
        places = [vars(group) for group in (*Commands.__bases__, Commands)]
        ordered = sorted(COMMANDS.values(), key=lambda known: [known.method in place for place in places].index(True))
        chosen = [COMMANDS[name] for name in operands] or ordered
        width = max(len(known.usage) for known in chosen)
        for known in chosen:
            self.echo(f"{known.usage:<{width}}  {known.summary}")

    @command("exit", "leave")
    def exit(self, _operands: list[str], _options: Mapping[str, str]) -> None:
        """As the end of the input does."""
        raise EOFError

    # --- for the shell, not to be typed ---

    def remounted(self, mount: Mount) -> None:
        """Go on with a new mount after a reset of the device: the same user, no locks. OSError if that fails."""
        before, self.mounted, self.mount = self.mount, mount, mount
        self._close_locked()  # of which the device knows nothing any more
        mount.umask = before.umask
        if (before.uid, before.gid) != (mount.uid, mount.gid):
            self.become(before.uid or 0, before.gid)

    def close(self) -> None:
        """Give up locks and mount, as far as the device lets."""
        self._close_locked()
        with contextlib.suppress(DeviceError, OSError):
            self.mounted.umount()

    def _close_locked(self) -> None:
        while self.locked:
            with contextlib.suppress(DeviceError, OSError):
                self.locked.popitem()[1].close()
