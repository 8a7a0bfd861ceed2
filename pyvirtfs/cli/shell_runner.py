"""What a command of the shell is: how it is declared and run, what it works on, and how its failures are told."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import getopt
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, ParamSpec, TypeVar

from pyvirtfs.cli.listing import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from pyvirtfs.guest import GuestFile, GuestPath, Mount

CHUNK_NBYTES = 1 << 20
"""Bytes that commands move at once; the mount cuts them into requests."""

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
    options: str | None
    """Letters of its options, as getopt(3) has them; None: what begins with a dash is an operand."""
    fewest: int
    most: int | None
    method: str


COMMANDS: dict[str, Command] = {}
"""By name."""


def command(usage: str, summary: str, *, options: str | None = "") -> Callable[[MethodT], MethodT]:
    """Declare a method as a command.

    The words of `usage` tell how many arguments it takes: ``[X]`` may be left out, ``X...`` repeated.
    """
    name, *words = usage.split()
    operands, depth, is_value = [], 0, False
    for word in words:
        is_option = word.lstrip("[").startswith("-")
        if not is_option and not is_value:
            operands.append((word, depth > 0 or word.startswith("[")))
        is_value = is_option and f"{word[-1]}:" in (options or "")
        depth += word.count("[") - word.count("]")
    fewest = sum(not optional for _, optional in operands)
    most = None if any("..." in word for word, _ in operands) else len(operands)

    def declare(method: MethodT) -> MethodT:
        COMMANDS[name] = Command(name, usage, summary, options, fewest, most, method.__name__)
        return method

    return declare


class Runner:
    """The state of a session (a mount, a user, a current folder, locks) and how commands are run on it.

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
        self.mounted = mount
        """The mount as it was made."""
        self.mount = mount
        """The same as the current user sees it."""
        self.mount_line = mount_line
        self.cwd = "/"
        self.locked: dict[str, GuestFile] = {}
        """The files that are open for the sake of their locks, by their paths."""
        self.echo = _output(echo)
        self.complain = _output(complain)
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
        except OSError as error:
            what = f"{_shown(error.filename)}: " if error.filename is not None else ""
            self._complain(known.name, f"{what}{reason(error)}")
        return not self.failed

    def _arguments(self, known: Command, words: list[str]) -> tuple[Mapping[str, str], list[str]]:
        if any("\0" in word for word in words):
            raise CommandError("an argument holds a NUL")
        found: list[tuple[str, str]] = []
        if known.options is None:
            operands = words[1:] if words[:1] == ["--"] else words
        else:
            try:
                found, operands = getopt.gnu_getopt(words, known.options)
            except getopt.GetoptError:
                raise UsageError from None
        if len(operands) < known.fewest or (known.most is not None and len(operands) > known.most):
            raise UsageError
        return dict(found), operands

    def _complain(self, name: str, text: str) -> None:
        self.failed = True
        self.complain(f"{name}: {text}")

    @contextlib.contextmanager
    def _each(self, name: str, operand: str) -> Iterator[None]:
        """A failure of one operand is told, and the next one gets its turn."""
        try:
            yield
        except OSError as error:
            self._complain(name, f"{printable(operand)}: {reason(error)}")

    @contextlib.contextmanager
    def _about(self, operand: str) -> Iterator[None]:
        """A failure is told with a name as it was typed, and ends the command."""
        try:
            yield
        except OSError as error:
            raise CommandError(f"{printable(operand)}: {reason(error)}") from None

    def _waiting(self, call: Callable[P, T]) -> Callable[P, T]:
        """A call of the host's that may take long."""

        def run(*args: P.args, **keywords: P.kwargs) -> T:
            with self.at_once():
                return call(*args, **keywords)

        return run

    # --- names ---

    def absolute(self, name: str) -> str:
        """The path from the root of the mount; ``..`` is resolved by its letters."""
        path = posixpath.normpath(posixpath.join(self.cwd, name))
        return "/" + path.lstrip("/")

    def path(self, name: str) -> GuestPath:
        """The guest's path of what was typed. FileNotFoundError if that was nothing."""
        if not name:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.mount.path(self.absolute(name))

    def _opened(self, name: str) -> GuestFile:
        """A file to read; IsADirectoryError for a folder, which a kernel would tell when it is read."""
        file = self.path(name).open_raw()
        if file.is_directory:
            file.close()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        return file

    def expand(self, names: list[str]) -> list[str]:
        """Replace patterns in last components by the names that they match; a pattern that matches nothing stays."""
        expanded: list[str] = []
        for name in names:
            folder, _, pattern = name.rpartition("/")
            matches: list[str] = []
            if any(character in pattern for character in "*?["):
                with contextlib.suppress(OSError):
                    entries = sorted(self.path(folder or ("/" if name[0] == "/" else ".")).listdir())
                    matches = [entry for entry in entries if fnmatch.fnmatchcase(entry, pattern)]
                    matches = [entry for entry in matches if pattern[0] == "." or entry[0] != "."]
            prefix = name[: len(name) - len(pattern)]
            expanded.extend(prefix + entry for entry in matches)
            if not matches:
                expanded.append(name)
        return expanded

    def _target(self, target: str, source: str) -> str:
        """The name of the copy: `target`, or the source's name in the folder `target`."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(self.path(target).stat().st_mode):
                return posixpath.normpath(posixpath.join(target, posixpath.basename(source.rstrip("/"))))
        return target


def reason(error: OSError) -> str:
    """Why a call failed, in words."""
    return os.strerror(error.errno) if error.errno else str(error)


def number_of(text: str, most: int) -> int:
    """A number that was typed. CommandError if it is none from 0 to `most`."""
    digits = text.lstrip("0") or text[:1]
    if not (text.isascii() and text.isdecimal()) or len(digits) > len(str(most)) or int(digits) > most:
        raise CommandError(f"{text!r} is not a number from 0 to {most}")
    return int(digits)


def _output(call: Callable[P, T]) -> Callable[P, T]:
    """A call that writes output; it raises OutputError if it fails."""

    def write(*args: P.args, **keywords: P.kwargs) -> T:
        try:
            return call(*args, **keywords)
        except OSError as error:
            raise OutputError(error) from None

    return write


def _shown(name: object) -> str:
    return printable(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else str(name)
