"""Commands of the shell for what only an open file has: locks, and a way to the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pyvirtfs.cli.listing import printable
from pyvirtfs.cli.shell_runner import CommandError, Runner, UsageError, command, number_of
from pyvirtfs.p9.constants import LOCK_TYPE_RDLCK

if TYPE_CHECKING:
    from pyvirtfs.guest import GuestFile
    from pyvirtfs.p9.results import LockRange

_MAX_OFFSET = (1 << 63) - 1


class OpenFiles(Runner):
    """lock, sync."""

    @command(
        "lock [-s] [-n] [-u|-t] FILE [START [LENGTH]]",
        "lock a file, or bytes of it, until it is unlocked (-u); -s: shared, -n: do not wait, -t: only test",
        options="snut",
    )
    def lock(self, operands: list[str], options: Mapping[str, str]) -> None:
        """Locks as fcntl(2) has them, of one process of the guest's; they end with the shell, too."""
        if {"-u", "-t"} <= set(options):
            raise UsageError
        name, *numbers = operands
        start, length = [*(number_of(number, _MAX_OFFSET) for number in numbers), 0, 0][:2]
        exclusive = "-s" not in options
        with self._each("lock", name):
            if "-u" in options:
                self._unlock(name, start, length, entirely=not numbers)
            elif "-t" in options:
                with self._open_for_locks(name) as file:
                    self.echo(_in_the_way(file.getlock(exclusive=exclusive, start=start, length=length)))
            else:
                timeout = 0.0 if "-n" in options else None
                with self._open_for_locks(name, keep=True) as file:
                    file.lock(exclusive=exclusive, start=start, length=length, timeout=timeout)

    @contextlib.contextmanager
    def _open_for_locks(self, name: str, *, keep: bool = False) -> Iterator[GuestFile]:
        """The file that has locks by that name, or a new one, to be kept if all is well."""
        path = self.absolute(name)
        if path in self.locked:
            yield self.locked[path]
            return
        file = self._opened(name)
        try:
            yield file
            if keep:
                self.locked[path] = file
        finally:
            if path not in self.locked:
                file.close()

    def _unlock(self, name: str, start: int, length: int, *, entirely: bool) -> None:
        file = self.locked.get(self.absolute(name))
        if file is None:
            raise CommandError(f"{printable(name)}: there are no locks on it")
        file.unlock(start=start, length=length)
        if entirely:
            del self.locked[self.absolute(name)]
            file.close()

    @command("sync [-d] FILE...", "bring files to the disk; -d: not all of their attributes", options="d")
    def sync(self, operands: list[str], options: Mapping[str, str]) -> None:
        """As fsync(2) or fdatasync(2)."""
        for name in self.expand(operands):
            with self._each("sync", name), self.path(name).open_raw() as file:
                file.fsync(datasync="-d" in options)


def _in_the_way(lock: LockRange | None) -> str:
    """The lock that another one would have to wait for, in words."""
    if lock is None:
        return "free"
    kind = "shared" if lock.type == LOCK_TYPE_RDLCK else "exclusive"
    last = lock.start + lock.length - 1 if lock.length else "the end"
    owner = lock.client_id.decode("utf-8", "backslashreplace")
    return f"{kind} lock of bytes {lock.start} to {last}, process {lock.proc_id} of {printable(owner)!r}"
