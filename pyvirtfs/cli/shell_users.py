"""Commands of the shell about who acts: the guest's user, its group, and the permissions of what it makes."""

from __future__ import annotations

from collections.abc import Mapping

from pyvirtfs.cli.shell_attributes import MAX_ID
from pyvirtfs.cli.shell_runner import CommandError, Runner, command, number_of


class Users(Runner):
    """id, su, umask."""

    @command("id", "show the user and the group on whose behalf the guest acts")
    def id(self, _operands: list[str], _options: Mapping[str, str]) -> None:
        """In numbers: the guest has no names for them."""
        self.echo(f"uid={self.mount.uid} gid={self.mount.gid}")

    @command("su [UID[:GID]]", "act on behalf of another user; without one, of root")
    def su(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """Attach anew, as Linux does for each user with access=user. The group is numbered as the user if not told."""
        uid, colon, gid = (operands or ["0"])[0].partition(":")
        user, group = number_of(uid, MAX_ID), number_of(gid if colon else uid, MAX_ID)
        with self._each("su", uid):
            self.become(user, group)

    def become(self, uid: int, gid: int) -> None:
        """Act on behalf of that user and group from now on. OSError if the server does not let it."""
        user = self.mounted.as_user(uid, gid=gid, umask=self.mount.umask)
        if self.mount is not self.mounted:
            self.mount.umount()
        self.mount = user

    @command("umask [MODE]", "show or set the permissions that new files do not get, in octal")
    def umask(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """Octal modes only."""
        if not operands:
            self.echo(f"{self.mount.umask:04o}")
            return
        digits = operands[0]
        if not digits or set(digits) - set("01234567") or len(digits) > 4 or int(digits, 8) > 0o777:
            raise CommandError(f"{digits!r} is not an octal mode from 0 to 777")
        self.mount.umask = int(digits, 8)
