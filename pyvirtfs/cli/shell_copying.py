"""Commands of the shell that copy: from the host, to the host, inside the mount."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from pyvirtfs.cli.listing import printable, quoted
from pyvirtfs.cli.shell_runner import CHUNK_NBYTES, CommandError, Runner, command, reason

if TYPE_CHECKING:
    from pyvirtfs.guest import GuestFile


class HostFile:
    """An open file of the host, with those methods of a `GuestFile` that copying takes.

    Args:
        name: Its name.
        flags: os.O_* flags.
        at_once: Entered around what may take long. See `Runner`.

    Raises:
        OSError: As open(2) has it, and EISDIR for any folder.
    """

    def __init__(self, name: str, flags: int, at_once: Callable[[], AbstractContextManager[None]]) -> None:
        self._at_once = at_once
        with at_once():
            self._fd = os.open(name, flags | os.O_CLOEXEC, 0o666)
        if stat.S_ISDIR(self.stat().st_mode):
            self.close()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)

    def stat(self) -> os.stat_result:
        """What fstat tells."""
        return os.fstat(self._fd)

    def read(self, nbytes: int) -> bytes:
        """Up to `nbytes` bytes, none at the end."""
        with self._at_once():
            return os.read(self._fd, nbytes)

    def write(self, data: bytes) -> int:
        """Write some of `data`; returns how many bytes that were."""
        with self._at_once():
            return os.write(self._fd, data)

    def truncate(self, size: int) -> int:
        """Cut it to `size` bytes."""
        os.ftruncate(self._fd, size)
        return size

    def close(self) -> None:
        """Close it, once."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Copying(Runner):
    """put, get, cp.

    A file that is there is written over and cut at the end, rather than emptied first: source and target may be one
    file, which nobody can tell if one name is the host's and the other the guest's.
    """

    @command("put HOST [GUEST]", "copy a file of the host into the guest's mount")
    def put(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """From the host."""
        source, target = operands[0], operands[1] if len(operands) > 1 else "."
        with self._about(source):
            reader = HostFile(source, os.O_RDONLY, self.at_once)
        with reader:
            self._copy_into_mount(reader, source, self._target(target, source))

    @command("get GUEST [HOST]", "copy a file of the guest's mount to the host")
    def get(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """To the host. A new file that could not be completed is removed."""
        source, target = operands[0], operands[1] if len(operands) > 1 else "."
        if os.path.isdir(target):
            target = os.path.join(target, posixpath.basename(self.absolute(source)))
        with self._about(source):
            reader = self._opened(source)
        with reader, self._unfinished(target) as (writer, is_new):
            self._copy(reader, writer, source, target, stays=not is_new)

    @contextlib.contextmanager
    def _unfinished(self, name: str) -> Iterator[tuple[HostFile, bool]]:
        """A file of the host to write, and whether it is new; a new one is removed if that fails."""
        flags = os.O_WRONLY | os.O_CREAT
        with self._about(name):
            try:
                file, is_new = HostFile(name, flags | os.O_EXCL, self.at_once), True
            except FileExistsError:
                file, is_new = HostFile(name, flags, self.at_once), False
        try:
            yield file, is_new
        except BaseException:
            if is_new:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
            raise

    @command("cp SOURCE TARGET", "copy a file inside the mount")
    def cp(self, operands: list[str], _options: Mapping[str, str]) -> None:
        """Inside the mount, through the guest."""
        source, target = operands[0], self._target(operands[1], operands[0])
        with self._about(source):
            reader = self._opened(source)
        with reader:
            if self._is_same(source, target):
                raise CommandError(f"{printable(source)} and {printable(target)} are the same file")
            self._copy_into_mount(reader, source, target)

    def _is_same(self, source: str, target: str) -> bool:
        try:
            return self.path(source).samefile(self.path(target))
        except OSError:
            return False

    def _copy_into_mount(self, reader: HostFile | GuestFile, source: str, target: str) -> None:
        with self._about(target):
            writer = self.path(target).open_raw(os.O_WRONLY | os.O_CREAT)
        self._copy(reader, writer, source, target, stays=True)

    def _copy(
        self, reader: HostFile | GuestFile, writer: HostFile | GuestFile, source: str, target: str, *, stays: bool
    ) -> None:
        """Copy everything, and close the target. CommandError with both names; `stays`: the target is there then."""
        reading = f"error reading {quoted(source)} for {quoted(target)}"
        writing = doing = f"error writing {quoted(target)} from {quoted(source)}"
        is_file, total = False, 0
        try:
            is_file = stat.S_ISREG(writer.stat().st_mode)
            with self._advancing(target, reader.stat().st_size) as advance:
                while True:
                    doing = reading
                    data = reader.read(CHUNK_NBYTES)
                    doing = writing
                    if not data:
                        break
                    done = 0
                    while done < len(data):
                        done += writer.write(data[done:] if done else data)
                    total += done
                    advance(done)
            if is_file and writer.stat().st_size > total:
                writer.truncate(total)
            writer.close()
        except OSError as error:
            rest = f"; {quoted(target)} is not complete" if stays and is_file else ""
            raise CommandError(f"{doing}: {reason(error)}{rest}") from None
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    @contextlib.contextmanager
    def _advancing(self, name: str, nbytes: int) -> Iterator[Callable[[int], None]]:
        """What to call with each number of bytes, for a progress bar if somebody sees it."""
        if self.progress is None or nbytes <= CHUNK_NBYTES:
            yield lambda _: None
            return
        with self.progress() as bar:
            task = bar.add_task(printable(name), total=nbytes)
            yield lambda done: bar.advance(task, done)
