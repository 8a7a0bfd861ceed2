"""Commands of the shell that make, remove and rename: folders, links, pipes and device nodes."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Mapping

from pyvirtfs.cli.listing import printable
from pyvirtfs.cli.shell_runner import CommandError, Runner, UsageError, command, number_of, reason

_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
"""The largest numbers that a device of Linux has."""


class Naming(Runner):
    """mkdir, rmdir, rm, mv, ln, mknod."""

    @command("mkdir [-p] FOLDER...", "make folders; -p: and those above, if they are missing", options="p")
    def mkdir(self, operands: list[str], options: Mapping[str, str]) -> None:
        """With -p, also those above, and none is an error."""
        for name in operands:
            with self._each("mkdir", name):
                self.path(name).mkdir(parents="-p" in options, exist_ok="-p" in options)

    @command("rmdir FOLDER...", "remove empty folders")
    def rmdir(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """Empty ones only."""
        for name in self.expand(operands):
            with self._each("rmdir", name):
                self.path(name).rmdir()

    @command(
        "rm [-r] [-f] PATH...",
        "remove files; -r: folders with all that is in them; -f: what is missing is no error",
        options="rf",
    )
    def rm(self, operands: list[str], options: Mapping[str, str]) -> None:
        """Never follows a symbolic link."""
        for name in self.expand(operands):
            if name and self.absolute(name) == "/":
                raise CommandError("the root of the mount stays")
            try:
                path = self.path(name)
                if "-r" in options and stat.S_ISDIR(path.lstat().st_mode):
                    self._remove_tree(name, force="-f" in options)
                else:
                    path.unlink()
            except FileNotFoundError as error:
                if "-f" not in options:
                    self._complain("rm", f"{printable(name)}: {reason(error)}")
            except OSError as error:
                self._complain("rm", f"{printable(name)}: {reason(error)}")

    def _remove_tree(self, top: str, *, force: bool) -> None:
        """Remove a folder and all that is in it. What cannot be removed is told; the folders above it stay then."""
        pending: list[tuple[str, int | None]] = [(top.rstrip("/"), stat.S_IFDIR)]
        full: set[str] = set()
        while pending:
            name, kind = pending.pop()
            path = self.path(name)
            try:
                if kind is None:  # a folder's second turn, behind all that is in it
                    if name in full:
                        full.add(posixpath.dirname(name))
                    else:
                        path.rmdir()
                elif (kind or stat.S_IFMT(path.lstat().st_mode)) == stat.S_IFDIR:
                    pending.append((name, None))
                    pending += [(f"{name}/{os.fsdecode(entry.name)}", entry.type << 12) for entry in path.scandir()]
                else:
                    path.unlink()
            except OSError as error:
                if force and isinstance(error, FileNotFoundError):  # somebody else was faster
                    continue
                self._complain("rm", f"{printable(name)}: {reason(error)}")
                full.add(posixpath.dirname(name))

    @command("mv SOURCE TARGET", "rename or move")
    def mv(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """As rename(2); into a folder if that is what the target is."""
        source, target = operands[0], self._target(operands[1], operands[0])
        with self._each("mv", f"{source} to {target}"):
            self.path(source).rename(self.path(target))

    @command("ln [-s] TARGET NAME", "make a hard link, or with -s a symbolic link", options="s")
    def ln(self, operands: list[str], options: Mapping[str, str]) -> None:
        """The target of a symbolic link is taken as it is."""
        target, name = operands[0], self._target(operands[1], operands[0])
        if "-s" in options:
            with self._each("ln", name):
                self.path(name).symlink_to(target)
            return
        with self._about(target):
            self.path(target).lstat()
        with self._each("ln", name):
            self.path(name).hardlink_to(self.path(target))

    @command("mknod NAME TYPE [MAJOR MINOR]", "make a pipe (TYPE p), or a device node (c or b, with its numbers)")
    def mknod(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """The umask counts."""
        name, letter, *numbers = operands
        kind = {"p": stat.S_IFIFO, "c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK}.get(letter)
        if kind is None or len(numbers) != (0 if letter == "p" else 2):
            raise UsageError
        device = os.makedev(number_of(numbers[0], _MAX_MAJOR), number_of(numbers[1], _MAX_MINOR)) if numbers else 0
        with self._each("mknod", name):
            self.path(name).mknod(kind | 0o666, device)
