"""How much an export may hold: ``space_hard_limit``, ``space_soft_limit``.

What counts is what objects take on the disk, as du(1) has it: each once, however many names it has, and those that were
removed while somebody has them open, too. The tree is measured at the start, then the driver tells what changes. What
programs of the host change shows at the next measurement, which is made when the limit seems to be reached.

The hard limit is where requests fail with ENOSPC. The soft one, if there is one, is the size that the guest is told
(statfs(2): nothing is available beyond), so programs that look stop there, and one warning is logged beyond it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import StatFs
from pyvirtfs.fsdev.options import Option

OPTIONS: Final = (
    Option(name="space_hard_limit", type="size", help="Bytes that the export may hold; then ENOSPC"),
    Option(name="space_soft_limit", type="size", help="Bytes that the guest is told the export may hold"),
)

BLOCK_NBYTES: Final = 512
"""The unit of st_blocks."""
_REST: Final = 20.0
"""A measurement is made again only after that many times what the last one took."""
_LONG: Final = 5.0
_SHOWN_BLOCK: Final = 4096
"""Bytes: guests are told of blocks no larger than this, if the file system's are made of such."""
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_log = logging.getLogger(__name__)


def measure(fd: int, unseen: list[bytes] | None = None) -> int:
    """The bytes that a tree takes on the disk, as far as this process may look; other file systems are left out.

    Args:
        fd: A descriptor of its top, ``O_PATH`` or not.
        unseen: Gets the names of folders that are this process's own, and that it may not look into nevertheless.

    Raises:
        OSError: The top cannot be read.
    """
    here = os.open(b".", _FOLDER_FLAGS, dir_fd=fd)
    try:
        top = os.fstat(here)
        total = top.st_blocks
        unseen = [] if unseen is None else unseen
        seen: set[int] = set()  # of those with several names
        blocks, folders = _look(here, top.st_dev, seen, unseen)
        total += blocks
        way = [(top.st_ino, folders)]
        while way:
            # One descriptor, however deep the tree is. The host may move folders meanwhile: then the rest is left out.
            _, folders = way[-1]
            if folders:
                step = folders.pop()
            else:
                way.pop()
                if not way:
                    break
                step = b".."
            try:
                there = os.open(step, _FOLDER_FLAGS, dir_fd=here)
            except OSError as error:
                if step == b"..":
                    break
                if error.errno == errno.EACCES and _is_own(here, step):
                    unseen.append(step)
                continue
            os.close(here)
            here = there
            found = os.fstat(here)
            if step == b"..":
                if found.st_ino != way[-1][0] or found.st_dev != top.st_dev:
                    break
                continue
            blocks, folders = _look(here, top.st_dev, seen, unseen)
            total += blocks
            way.append((found.st_ino, folders))
    finally:
        os.close(here)
    return total * BLOCK_NBYTES


def _is_own(fd: int, name: bytes = b".") -> bool:
    """Whether a folder belongs to the user of this process."""
    with contextlib.suppress(OSError):
        found = os.fstat(fd) if name == b"." else os.stat(name, dir_fd=fd, follow_symlinks=False)
        return found.st_uid == os.geteuid()
    return False


def _look(fd: int, device: int, seen: set[int], unseen: list[bytes]) -> tuple[int, list[bytes]]:
    """The blocks of what is in a folder, and the names of the folders in it."""
    total = 0
    folders: list[bytes] = []
    with contextlib.suppress(OSError), os.scandir(fd) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
                folder = entry.is_dir(follow_symlinks=False)
            except OSError as error:
                if error.errno == errno.EACCES and _is_own(fd):
                    unseen.append(b".")
                    break
                continue
            if found.st_dev != device:
                continue
            if folder:
                folders.append(os.fsencode(entry.name))
            elif found.st_nlink > 1:
                if found.st_ino in seen:
                    continue
                seen.add(found.st_ino)
            total += found.st_blocks
    return total, folders


def fitting(fd: int, start: int, end: int, room: int, block: int) -> int:
    """How many bytes of a range of a file can be written, from its start on, before that takes too much more.

    What lies in a block that is on the disk takes nothing; where a hole is, or the file has ended, all of a block is
    taken. So the range is cut, if at all, where a block begins.

    Args:
        fd: Open, not ``O_PATH``; its position changes.
        start: First byte.
        end: First byte behind the range.
        room: How many bytes more it may take; less than one block may be nothing, or less.
        block: What the file system gives out at a time, in bytes.

    Raises:
        OSError: As lseek(2), but for ENXIO.
    """
    left = max(room // block, 0)
    reached = start // block
    rounded_end = -(-end // block) * block
    for data_start, data_end in chain(_data(fd, reached * block, end), ((rounded_end, rounded_end),)):
        first = data_start // block
        if first - reached > left:
            return max((reached + left) * block - start, 0)
        left -= max(first - reached, 0)
        reached = max(-(-data_end // block), reached)
    return end - start


def _data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What is on the disk of a range of a file: where each piece starts and ends."""
    while start < end:
        try:
            begin = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        if begin >= end:
            return
        start = min(os.lseek(fd, begin, os.SEEK_HOLE), end)
        yield begin, start


class SpaceLimits:
    """What one export holds, and may hold.

    Args:
        hard: Bytes, or None: as many as the disk has.
        soft: Bytes, or None: no other size is told.

    Raises:
        ConfigError: One is 0, or the soft limit is above the hard one.
    """

    __slots__ = ("_again", "_warned", "hard", "soft", "used")

    def __init__(self, hard: int | None, soft: int | None) -> None:
        for name, limit in (("space_hard_limit", hard), ("space_soft_limit", soft)):
            if limit is not None and limit < 1:
                raise ConfigError(name, f"{limit} bytes hold nothing")
        if hard is not None and soft is not None and soft > hard:
            raise ConfigError("space_soft_limit", f"{soft} is above space_hard_limit, which is {hard}")
        self.hard = hard
        self.soft = soft
        self.used = 0
        """Bytes, as far as it is known."""
        self._again = 0.0
        self._warned = False

    def measure(self, root: int, orphans: Iterable[int] = ()) -> None:
        """Find out what there is.

        What was known remains where the process may not look into folders of its own user: a guest has taken itself
        the permission, and could hide any amount in them.

        Args:
            root: A descriptor of the top of the export.
            orphans: Bytes of objects that have no name any more.

        Raises:
            OSError: As `measure`.
        """
        began = time.monotonic()
        self._again = began + 1.0
        unseen: list[bytes] = []
        used = measure(root, unseen) + sum(orphans)
        self.used = max(used, self.used) if unseen else used
        took = time.monotonic() - began
        self._again = began + took + max(took * _REST, 1.0)
        if took > _LONG:
            _log.warning("measuring what the export holds took %.0f s", took)
        self.changed(0)

    @property
    def may_measure(self) -> bool:
        """Whether the last measurement is so long ago that another one does not take more than its share of time."""
        return time.monotonic() >= self._again

    def changed(self, nbytes: int) -> None:
        """The export holds that much more, or less."""
        self.used = max(self.used + nbytes, 0)
        if self.soft is not None:
            if self.used <= self.soft:
                self._warned = False
            elif not self._warned:
                self._warned = True
                _log.warning("the export holds %d bytes, more than space_soft_limit=%d", self.used, self.soft)

    def fits(self, nbytes: int) -> bool:
        """Whether that much more is within the hard limit."""
        return self.hard is None or self.used + nbytes <= self.hard

    @property
    def room(self) -> int:
        """How many bytes more there may be up to the hard limit, less than none beyond it; there must be one."""
        assert self.hard is not None
        return self.hard - self.used

    def shown(self, figures: StatFs) -> StatFs:
        """The figures of a file system as a guest is to see them."""
        bsize = figures.bsize or BLOCK_NBYTES
        smaller = bsize // _SHOWN_BLOCK if bsize % _SHOWN_BLOCK == 0 else 1
        bsize //= smaller
        used = -(-self.used // bsize)
        limits = [limit // bsize for limit in (self.hard, self.soft) if limit is not None]
        blocks = min(figures.blocks * smaller, *limits)
        left = max(blocks - used, 0)
        return figures._replace(
            blocks=blocks,
            bfree=min(figures.bfree * smaller, left),
            bavail=min(figures.bavail * smaller, left),
            bsize=bsize,
        )
