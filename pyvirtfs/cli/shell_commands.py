"""What the shell's guest can do: one method of `Commands` for each command, in the manner of coreutils."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import getopt
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, ParamSpec, TypeVar

from pyvirtfs.cli import listing
from pyvirtfs.cli.listing import Row, printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from pyvirtfs.guest import GuestFile, GuestPath, Mount

CHUNK_NBYTES = 1 << 20
"""Bytes that `put`, `get` and `cp` move at once; the mount cuts them into requests."""

MethodT = TypeVar("MethodT", bound=Callable[..., None])
P = ParamSpec("P")
T = TypeVar("T")


class UsageError(Exception):
    """The command was not written as it must be; the text is its usage."""


class CommandError(Exception):
    """Something else than a failed system call; the text is told as it is."""


class OutputError(Exception):
    """What a command prints cannot be written, which is no failure of the guest's.

    Args:
        error: Why not.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Command:
    """One command: how it is written, what it does."""

    name: str
    usage: str
    summary: str
    options: str
    """Letters of its options, as getopt(3) has them."""
    fewest: int
    most: int | None
    method: str


COMMANDS: dict[str, Command] = {}


def command(usage: str, summary: str, *, options: str = "") -> Callable[[MethodT], MethodT]:
    """Declare a method as a command.

    The words of `usage` tell how many arguments it takes: ``[X]`` may be left out, ``X...`` repeated.
    """
    name, *words = usage.split()
    operands = [word for word in words if not word.strip("[]").startswith("-")]
    fewest = sum(not word.startswith("[") for word in operands)
    most = None if any("..." in word for word in operands) else len(operands)

    def declare(method: MethodT) -> MethodT:
        COMMANDS[name] = Command(name, usage, summary, options, fewest, most, method.__name__)
        return method

    return declare


class Commands:
    """The state of a session (a mount and a current folder) and its commands.

    Args:
        mount: What the guest has mounted.
        mount_line: What the command `mount` shows.
        echo: Called with each line of output.
        complain: Called with each line that tells an error.
        binary: Where `cat` writes bytes.
        progress: Makes a progress bar, or None where nobody would see it.
        set_trace: Turns the trace of messages on or off.
        at_once: Entered around what waits for the host, where an interruption does no harm to the guest.
    """

    def __init__(
        self,
        mount: Mount,
        mount_line: str,
        *,
        echo: Callable[[str], None],
        complain: Callable[[str], None],
        binary: IO[bytes],
        progress: Callable[[], Progress] | None = None,
        set_trace: Callable[[bool], None],
        at_once: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.mount = mount
        self.mount_line = mount_line
        self.cwd = "/"
        self.echo = _output(echo)
        self.complain = complain
        self._write = _output(binary.write)
        self._flush = _output(binary.flush)
        self.progress = progress
        self.set_trace = set_trace
        self.at_once = at_once
        self.failed = False

    # --- running one ---

    def run(self, words: list[str]) -> bool:
        """Run one command; whether it succeeded.

        Raises:
            EOFError: It was `exit`.
            OutputError: Its output cannot be written.
        """
        self.failed = False
        known = COMMANDS.get(words[0])
        if known is None:
            self.complain(f"{printable(words[0])}: command not found")
            return False
        try:
            options, operands = self._arguments(known, words[1:])
            getattr(self, known.method)(operands, options)
        except UsageError:
            self._complain("usage", known.usage)
        except CommandError as error:
            self._complain(known.name, str(error))
        except BrokenPipeError:
            raise
        except OSError as error:
            what = f"{_shown(error.filename)}: " if error.filename is not None else ""
            self._complain(known.name, f"{what}{os.strerror(error.errno) if error.errno else error}")
        return not self.failed

    def _arguments(self, known: Command, words: list[str]) -> tuple[set[str], list[str]]:
        try:
            found, operands = getopt.gnu_getopt(words, known.options)
        except getopt.GetoptError:
            raise UsageError from None
        if len(operands) < known.fewest or (known.most is not None and len(operands) > known.most):
            raise UsageError
        return {letter for letter, _ in found}, operands

    def _complain(self, name: str, text: str) -> None:
        self.failed = True
        self.complain(f"{name}: {text}")

    @contextlib.contextmanager
    def _each(self, name: str, operand: str) -> Iterator[None]:
        """A failure of one operand is told, and the next one gets its turn."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self._complain(name, f"{printable(operand)}: {os.strerror(error.errno) if error.errno else error}")

    # --- names ---

    def absolute(self, name: str) -> str:
        """The path from the root of the mount; ``..`` is resolved by its letters."""
        path = posixpath.normpath(posixpath.join(self.cwd, name))
        return "/" + path.lstrip("/")

    def path(self, name: str) -> GuestPath:
        """The guest's path of what was typed."""
        return self.mount.path(self.absolute(name))

    def expand(self, names: list[str]) -> list[str]:
        """Replace patterns in last components by the names that they match; a pattern that matches nothing stays."""
        expanded: list[str] = []
        for name in names:
            folder, _, pattern = name.rpartition("/")
            matches: list[str] = []
            if any(character in pattern for character in "*?["):
                with contextlib.suppress(OSError):
                    entries = sorted(
                        entry.name for entry in self.path(folder or ("/" if name[0] == "/" else ".")).iterdir()
                    )
                    matches = [entry for entry in entries if fnmatch.fnmatchcase(entry, pattern)]
                    matches = [entry for entry in matches if pattern[0] == "." or entry[0] != "."]
            prefix = name[: len(name) - len(pattern)]
            expanded.extend(prefix + entry for entry in matches)
            if not matches:
                expanded.append(name)
        return expanded

    # --- looking ---

    @command("ls [-l] [-a] [PATH...]", "list folders and files", options="la")
    def ls(self, operands: list[str], options: set[str]) -> None:
        """List; folders after files, each with its name if there are several."""
        operands = self.expand(operands) or ["."]
        files: list[Row] = []
        folders: list[str] = []
        for name in operands:
            with self._each("ls", name):
                row = self._row(name)
                if stat.S_ISDIR(row.status.st_mode):
                    folders.append(name)
                else:
                    files.append(row)
        self._print_rows(files, "-l" in options)
        for name in folders:
            with self._each("ls", name):
                if len(operands) > 1:
                    self.echo(f"{printable(name)}:")
                rows = self._entries(name, hidden="-a" in options)
                if "-l" in options:
                    self.echo(listing.total_line(rows))
                self._print_rows(rows, "-l" in options)

    def _row(self, name: str) -> Row:
        path = self.path(name)
        status = path.lstat()
        return Row(name, status, path.readlink() if stat.S_ISLNK(status.st_mode) else None)

    def _entries(self, name: str, *, hidden: bool) -> list[Row]:
        rows = []
        prefix = "" if name == "." else f"{name.rstrip('/')}/"
        for entry in sorted(path.name for path in self.path(name).iterdir()):
            if hidden or not entry.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # removed while we look
                    rows.append(self._row(prefix + entry)._replace(name=entry))
        return rows

    def _print_rows(self, rows: list[Row], long: bool) -> None:
        for line in listing.long_lines(rows) if long and rows else [printable(row.name) for row in rows]:
            self.echo(line)

    @command("cat FILE...", "show files")
    def cat(self, operands: list[str], _options: set[str]) -> None:
        """Write files to the output, byte by byte as they are."""
        for name in self.expand(operands):
            with self._each("cat", name), self._opened(name) as file:
                while data := file.read(CHUNK_NBYTES):
                    self._write(data)
        self._flush()

    @command("stat PATH...", "show what is known of an object")
    def stat(self, operands: list[str], _options: set[str]) -> None:
        """All attributes, symbolic links not followed."""
        for name in self.expand(operands):
            with self._each("stat", name):
                for line in listing.stat_lines(self._row(name)):
                    self.echo(line)

    @command("df", "show how full the file system is")
    def df(self, _operands: list[str], _options: set[str]) -> None:
        """As `df -h`."""
        space = self.path("/").statvfs()
        tag = self.mount_line.split()[0]
        for line in listing.df_lines(tag, "/", space.f_frsize, space.f_blocks, space.f_bfree, space.f_bavail):
            self.echo(line)

    @command("mount", "show the mount and its options")
    def show_mount(self, _operands: list[str], _options: set[str]) -> None:
        """As Linux's mount without arguments."""
        self.echo(self.mount_line)

    # --- going ---

    @command("cd [FOLDER]", "go to a folder")
    def cd(self, operands: list[str], _options: set[str]) -> None:
        """Without an argument to the root."""
        name = operands[0] if operands else "/"
        with self._each("cd", name):
            if not stat.S_ISDIR(self.path(name).stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            self.cwd = self.absolute(name)

    @command("pwd", "show the current folder")
    def pwd(self, _operands: list[str], _options: set[str]) -> None:
        """The path from the root of the mount."""
        self.echo(printable(self.cwd))

    # --- copying ---

    @command("put HOST [GUEST]", "copy a file of the host into the guest's mount")
    def put(self, operands: list[str], _options: set[str]) -> None:
        """From the host."""
        source = operands[0]
        target = self._target(operands[1] if len(operands) > 1 else ".", source)
        with self._waiting(open)(source, "rb") as reader, self._created(target) as writer:
            self._copy(self._waiting(reader.read), writer.write, os.fstat(reader.fileno()).st_size, target)

    @command("get GUEST [HOST]", "copy a file of the guest's mount to the host")
    def get(self, operands: list[str], _options: set[str]) -> None:
        """To the host. A new file that could not be completed is removed."""
        source, target = operands[0], operands[1] if len(operands) > 1 else "."
        if os.path.isdir(target):
            target = os.path.join(target, posixpath.basename(self.absolute(source)))
        with self._opened(source) as reader, self._unfinished(target) as writer:
            self._copy(reader.read, self._waiting(writer.write), reader.stat().st_size, target)

    @contextlib.contextmanager
    def _unfinished(self, name: str) -> Iterator[IO[bytes]]:
        """A file of the host to write; if that fails it is removed, or the person told if it was there before."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            fd, is_new = self._waiting(os.open)(name, flags | os.O_EXCL, 0o666), True
        except FileExistsError:
            fd, is_new = self._waiting(os.open)(name, flags | os.O_TRUNC, 0o666), False
        try:
            with open(fd, "wb", buffering=0) as file:
                yield file
        except BaseException:
            if is_new:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
            elif os.path.isfile(name):
                self._complain("get", f"{printable(name)} is not complete")
            raise

    @command("cp SOURCE TARGET", "copy a file inside the mount")
    def cp(self, operands: list[str], _options: set[str]) -> None:
        """Inside the mount, through the guest."""
        source, target = operands[0], self._target(operands[1], operands[0])
        if self.absolute(source) == self.absolute(target):
            raise CommandError(f"{printable(source)} and {printable(target)} are the same file")
        with self._opened(source) as reader, self._created(target) as writer:
            self._copy(reader.read, writer.write, reader.stat().st_size, target)

    def _opened(self, name: str) -> GuestFile:
        """A file to read; IsADirectoryError for a folder, which a kernel would tell when it is read."""
        file = self.path(name).open_raw()
        if stat.S_ISDIR(file.stat().st_mode):
            file.close()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path(name)))
        return file

    def _created(self, name: str) -> GuestFile:
        return self.path(name).open_raw(os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def _target(self, target: str, source: str) -> str:
        """The name of the copy: `target`, or the source's name in the folder `target`."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(self.path(target).stat().st_mode):
                return posixpath.normpath(posixpath.join(target, posixpath.basename(source.rstrip("/"))))
        return target

    def _copy(self, read: Callable[[int], bytes], write: Callable[[bytes], int], nbytes: int, name: str) -> None:
        with contextlib.ExitStack() as stack:
            advance: Callable[[int], None] = lambda _: None  # noqa: E731 (the stand-in of a bound method)
            if self.progress is not None and nbytes > CHUNK_NBYTES:
                bar = stack.enter_context(self.progress())
                task = bar.add_task(printable(name), total=nbytes)
                advance = lambda done: bar.advance(task, done)  # noqa: E731  # as above
            while data := read(CHUNK_NBYTES):
                done = 0
                while done < len(data):
                    done += write(data[done:] if done else data)
                advance(len(data))

    def _waiting(self, call: Callable[P, T]) -> Callable[P, T]:
        """A call of the host's that may take long."""

        def run(*args: P.args, **keywords: P.kwargs) -> T:
            with self.at_once():
                return call(*args, **keywords)

        return run

    # --- changing names ---

    @command("mkdir [-p] FOLDER...", "make folders", options="p")
    def mkdir(self, operands: list[str], options: set[str]) -> None:
        """With -p, also those above, and none is an error."""
        for name in operands:
            with self._each("mkdir", name):
                self.path(name).mkdir(parents="-p" in options, exist_ok="-p" in options)

    @command("rmdir FOLDER...", "remove empty folders")
    def rmdir(self, operands: list[str], _options: set[str]) -> None:
        """Empty ones only."""
        for name in self.expand(operands):
            with self._each("rmdir", name):
                self.path(name).rmdir()

    @command("rm [-r] [-f] PATH...", "remove files; -r: folders with all that is in them", options="rf")
    def rm(self, operands: list[str], options: set[str]) -> None:
        """Never follows a symbolic link."""
        for name in self.expand(operands):
            if self.absolute(name) == "/":
                raise CommandError("the root of the mount stays")
            with self._each("rm", name):
                try:
                    self._remove(self.path(name), recursive="-r" in options)
                except FileNotFoundError:
                    if "-f" not in options:
                        raise

    def _remove(self, path: GuestPath, *, recursive: bool) -> None:
        if recursive and stat.S_ISDIR(path.lstat().st_mode):
            for entry in list(path.iterdir()):
                self._remove(entry, recursive=True)
            path.rmdir()
        else:
            path.unlink()

    @command("mv SOURCE TARGET", "rename or move")
    def mv(self, operands: list[str], _options: set[str]) -> None:
        """As rename(2); into a folder if that is what the target is."""
        self.path(operands[0]).rename(self.path(self._target(operands[1], operands[0])))

    @command("ln [-s] TARGET NAME", "make a hard link, or with -s a symbolic link", options="s")
    def ln(self, operands: list[str], options: set[str]) -> None:
        """The target of a symbolic link is taken as it is."""
        target, name = operands[0], self._target(operands[1], operands[0])
        if "-s" in options:
            self.path(name).symlink_to(target)
            return
        with self._each("ln", target):
            self.path(target).lstat()
        if not self.failed:
            with self._each("ln", name):
                self.path(name).hardlink_to(self.path(target))

    # --- changing attributes ---

    @command("chmod MODE PATH...", "set permissions, in octal")
    def chmod(self, operands: list[str], _options: set[str]) -> None:
        """Octal modes only."""
        try:
            mode = int(operands[0], 8)
        except ValueError:
            raise CommandError(f"{operands[0]!r} is not an octal mode, such as 644") from None
        if not 0 <= mode <= 0o7777:
            raise CommandError(f"{operands[0]!r} is not an octal mode from 0 to 7777")
        for name in self.expand(operands[1:]):
            with self._each("chmod", name):
                self.path(name).chmod(mode)

    @command("touch FILE...", "set the times to now; make the file if there is none")
    def touch(self, operands: list[str], _options: set[str]) -> None:
        """What there is keeps its content."""
        for name in self.expand(operands):
            with self._each("touch", name):
                self.path(name).touch()

    @command(
        "xattr [-p|-w|-d] [NAME] [VALUE] PATH",
        "list extended attributes; -p NAME: print, -w NAME VALUE: write, -d NAME: delete",
        options="pwd",
    )
    def xattr(self, operands: list[str], options: set[str]) -> None:
        """Values are shown and taken as text."""
        *values, name = operands
        path = self.path(name)
        if len(options) > 1 or len(values) != {"-p": 1, "-d": 1, "-w": 2}.get("".join(options), 0):
            raise UsageError
        if "-p" in options:
            self.echo(printable(os.fsdecode(path.getxattr(values[0]))))
        elif "-w" in options:
            path.setxattr(values[0], os.fsencode(values[1]))
        elif "-d" in options:
            path.removexattr(values[0])
        else:
            for attribute in path.listxattr():
                self.echo(printable(attribute))

    # --- the shell itself ---

    @command("trace on|off", "print each 9P message, or do not")
    def trace(self, operands: list[str], _options: set[str]) -> None:
        """One line for each request and each reply."""
        if operands[0] not in {"on", "off"}:
            raise UsageError
        self.set_trace(operands[0] == "on")

    @command("help [COMMAND]", "show the commands")
    def help(self, operands: list[str], _options: set[str]) -> None:
        """One line for each."""
        if operands and operands[0] not in COMMANDS:
            raise CommandError(f"there is no command {operands[0]!r}")
        chosen = [COMMANDS[name] for name in operands] or list(COMMANDS.values())
        width = max(len(known.usage) for known in chosen)
        for known in chosen:
            self.echo(f"{known.usage:<{width}}  {known.summary}")

    @command("exit", "leave")
    def exit(self, _operands: list[str], _options: set[str]) -> None:
        """As the end of the input does."""
        raise EOFError


def _output(call: Callable[P, T]) -> Callable[P, T]:
    """A call that writes output; it raises OutputError if it fails, or BrokenPipeError if nobody reads on."""

    def write(*args: P.args, **keywords: P.kwargs) -> T:
        try:
            return call(*args, **keywords)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error) from None

    return write


def _shown(name: object) -> str:
    return printable(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else str(name)
