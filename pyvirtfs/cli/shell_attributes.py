"""Commands of the shell that change what is known of files: modes, owners, sizes, times, extended attributes."""

from __future__ import annotations

import binascii
import errno
import os
import re
import stat
from collections.abc import Mapping
from datetime import datetime

from pyvirtfs.cli.file_modes import ModeChange
from pyvirtfs.cli.listing import printable
from pyvirtfs.cli.shell_runner import CommandError, Runner, UsageError, command, number_of

MAX_ID = (1 << 32) - 2
"""The largest number of a user or a group; one more stands for nobody."""

_MAX_SIZE = (1 << 63) - 1
_SIZE = re.compile(r"([-+]?)([0-9]{1,19})([KMGTPE]?)(B?)", re.ASCII)
_NANOSECONDS = 1_000_000_000


class Attributes(Runner):
    """chmod, chown, touch, truncate, xattr."""

    @command("chmod MODE PATH...", "set permissions: 644, u=rwX,go-w", options=None)
    def chmod(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """Octal modes are set as they are, symbolic ones as coreutils do."""
        try:
            change = ModeChange(operands[0])
        except ValueError as error:
            raise CommandError(str(error)) from None
        for name in self.expand(operands[1:]):
            with self._each("chmod", name):
                path = self.path(name)
                now = path.stat().st_mode if change.is_relative else 0
                path.chmod(change.applied(stat.S_IMODE(now), umask=self.mount.umask, is_folder=stat.S_ISDIR(now)))

    @command("chown [-h] UID[:GID] PATH...", "set owner and group, in numbers; -h: of symbolic links", options="h")
    def chown(self, operands: list[str], options: Mapping[str, str]) -> None:
        """`UID`, `UID:GID` or `:GID`; what is left out stays."""
        uid, colon, gid = operands[0].partition(":")
        if not gid and (colon or not uid):
            raise UsageError
        ids = [number_of(number, MAX_ID) if number else -1 for number in (uid, gid)]
        for name in self.expand(operands[1:]):
            with self._each("chown", name):
                self.path(name).chown(*ids, follow_symlinks="-h" not in options)

    @command("touch [-d TIME] FILE...", "set the times to now, or TIME; make the file if there is none", options="d:")
    def touch(self, operands: list[str], options: Mapping[str, str]) -> None:
        """What there is keeps its content. The time: @SECONDS since 1970, or a date of ISO 8601."""
        moment = _moment(options["-d"]) if "-d" in options else None
        for name in self.expand(operands):
            with self._each("touch", name):
                path = self.path(name)
                path.touch()
                if moment is not None:
                    path.utime(ns=(moment, moment))

    @command("truncate -s SIZE FILE...", "set the size: 10, 4K, or by how much: +1M, -5", options="s:")
    def truncate(self, operands: list[str], options: Mapping[str, str]) -> None:
        """A file that is missing is made, a size below 0 is 0."""
        if "-s" not in options:
            raise UsageError
        sign, size = _size(options["-s"])
        for name in self.expand(operands):
            with self._each("truncate", name), self.path(name).open_raw(os.O_WRONLY | os.O_CREAT) as file:
                base = file.stat().st_size if sign else 0
                wanted = base - size if sign == "-" else base + size
                if wanted > _MAX_SIZE:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                file.truncate(max(wanted, 0))

    @command(
        "xattr [-h] [-p|-w|-d] [NAME] [VALUE] PATH",
        "list extended attributes; -p NAME: print, -w NAME VALUE: write, -d NAME: delete; -h: of a symbolic link",
        options="pwdh",
    )
    def xattr(self, operands: list[str], options: Mapping[str, str]) -> None:
        """Values are shown and taken as text, those that begin with 0x as hexadecimal digits."""
        *values, name = operands
        act, follow = "".join(option for option in options if option != "-h"), "-h" not in options
        if len(values) != {"": 0, "-p": 1, "-d": 1, "-w": 2}.get(act, -1):
            raise UsageError
        with self._each("xattr", name):
            path = self.path(name)
            if act == "-p":
                self.echo(printable(os.fsdecode(path.getxattr(values[0], follow_symlinks=follow))))
            elif act == "-w":
                path.setxattr(values[0], _value(values[1]), follow_symlinks=follow)
            elif act == "-d":
                path.removexattr(values[0], follow_symlinks=follow)
            else:
                for attribute in path.listxattr(follow_symlinks=follow):
                    self.echo(printable(attribute))


def _size(text: str) -> tuple[str, int]:
    """A sign, if there is one, and a number of bytes."""
    found = _SIZE.fullmatch(text)
    if found is None or (found[4] and not found[3]):
        raise CommandError(f"{text!r} is not a size, such as 10, 4K, +1M or -5")
    unit = (1000 if found[4] else 1024) ** " KMGTPE".index(found[3] or " ")
    return found[1], int(found[2]) * unit


def _moment(text: str) -> int:
    """Nanoseconds since 1970."""
    if text.startswith("@"):
        seconds = int(text[1:]) if re.fullmatch("@[0-9]{1,18}", text) else -1
    else:
        try:
            seconds = round(datetime.fromisoformat(text).timestamp())
        except (ValueError, OverflowError):
            seconds = -1
    if seconds < 0:
        raise CommandError(f"{text!r} is not a time from 1970 on, such as @0 or 2001-01-01T12:00")
    return seconds * _NANOSECONDS


def _value(text: str) -> bytes:
    if not text.startswith("0x"):
        return os.fsencode(text)
    try:
        return binascii.unhexlify(text[2:])
    except ValueError:
        raise CommandError(f"{text!r} are no hexadecimal digits, two for each byte") from None
