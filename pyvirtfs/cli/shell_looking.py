"""Commands of the shell that look at files and folders and change nothing, and those that go from one to another."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from pyvirtfs.cli import listing
from pyvirtfs.cli.listing import Row, Unknown, printable, quoted
from pyvirtfs.cli.shell_runner import CHUNK_NBYTES, Runner, command, reason


class Looking(Runner):
    """ls, cat, stat, readlink, df, mount; cd and pwd."""

    @command("ls [-l] [-a] [-d] [PATH...]", "list folders and files; -d: folders as files", options="lad")
    def ls(self, operands: list[str], options: Mapping[str, str]) -> None:
        """List; folders after files, each with its name if there are several."""
        operands = self.expand(operands) or ["."]
        files: list[Row | Unknown] = []
        folders: list[str] = []
        for name in operands:
            row = self._row(name, name)
            if isinstance(row, Row):
                is_listed = stat.S_ISDIR(row.status.st_mode) and "-d" not in options
                folders.append(name) if is_listed else files.append(row)
        self._print_rows(files, "-l" in options)
        for name in folders:
            if len(operands) > 1:
                self.echo(f"{printable(name)}:")
            try:
                rows = self._entries(name, hidden="-a" in options, long="-l" in options)
            except OSError as error:
                self._complain("ls", f"cannot open {quoted(name)}: {reason(error)}")
                continue
            if "-l" in options:
                self.echo(listing.total_line(rows))
            self._print_rows(rows, "-l" in options)

    def _row(self, name: str, shown: str, kind: int = 0) -> Row | Unknown:
        """What is known of a file; if that is nothing, or not all, the reason is told."""
        doing = "access"
        try:
            path = self.path(name)
            row = Row(shown, path.lstat())
            if stat.S_ISLNK(row.status.st_mode):
                doing = "read symbolic link"
                return row._replace(target=path.readlink())
        except OSError as error:
            self._complain("ls", f"cannot {doing} {quoted(name)}: {reason(error)}")
            return row if doing != "access" else Unknown(shown, kind)
        return row

    def _entries(self, name: str, *, hidden: bool, long: bool) -> list[Row | Unknown]:
        """What is in a folder; only a long listing asks for each file of it."""
        prefix = "" if name == "." else f"{name.rstrip('/')}/"
        found = sorted((os.fsdecode(entry.name), entry.type << 12) for entry in self.path(name).scandir())
        shown = [(entry, kind) for entry, kind in found if hidden or not entry.startswith(".")]
        return [self._row(prefix + entry, entry, kind) if long else Unknown(entry, kind) for entry, kind in shown]

    def _print_rows(self, rows: list[Row | Unknown], long: bool) -> None:
        for line in listing.long_lines(rows) if long and rows else [printable(row.name) for row in rows]:
            self.echo(line)

    @command("cat FILE...", "show files")
    def cat(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """Write files to the output, byte by byte as they are."""
        for name in self.expand(operands):
            with self._each("cat", name), self._opened(name) as file:
                while data := file.read(CHUNK_NBYTES):
                    self._write(data)
        self._flush()

    @command("stat [-L] PATH...", "show what is known of an object; -L: behind symbolic links", options="L")
    def stat(self, operands: list[str], options: Mapping[str, str]) -> None:
        """All attributes."""
        for name in self.expand(operands):
            with self._each("stat", name):
                path = self.path(name)
                status = path.stat(follow_symlinks="-L" in options)
                target = path.readlink() if stat.S_ISLNK(status.st_mode) else None
                for line in listing.stat_lines(Row(name, status, target)):
                    self.echo(line)

    @command("readlink PATH...", "show where symbolic links lead")
    def readlink(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """The target as it is."""
        for name in self.expand(operands):
            with self._each("readlink", name):
                self.echo(printable(self.path(name).readlink()))

    @command("df", "show how full the file system is")
    def df(self, _operands: list[str], _options: Mapping[str, str]) -> None:
        """As `df -h`."""
        space = self.path("/").statvfs()
        tag = self.mount_line.split()[0]
        for line in listing.df_lines(tag, "/", space.f_frsize, space.f_blocks, space.f_bfree, space.f_bavail):
            self.echo(line)

    @command("mount", "show the mount and its options")
    def show_mount(self, _operands: list[str], _options: Mapping[str, str]) -> None:
        """As Linux's mount without arguments."""
        self.echo(self.mount_line)

    @command("cd [FOLDER]", "go to a folder")
    def cd(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """Without an argument to the root."""
        name = operands[0] if operands else "/"
        with self._each("cd", name):
            if not stat.S_ISDIR(self.path(name).stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            self.cwd = self.absolute(name)

    @command("pwd", "show the current folder")
    def pwd(self, _operands: list[str], _options: Mapping[str, str]) -> None:
        """The path from the root of the mount."""
        self.echo(printable(self.cwd))
