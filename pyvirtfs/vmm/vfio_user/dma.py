"""Guest RAM as a vfio-user client gives it: file descriptors to map, or its word that it will read and write for us."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvirtfs.errors import ConfigError
from pyvirtfs.memory import RemotePort
from pyvirtfs.syscalls import SEAL_SHRINK, add_seals, get_seals, is_on_huge_pages
from pyvirtfs.vmm.vfio_user.messages import DMA_READ_ACCESS, DMA_WRITE_ACCESS

if TYPE_CHECKING:
    from pyvirtfs.memory import GuestMemory

MAX_REGIONS: Final = 32768
"""How many mappings a client may make; Linux gives a process 65530 (vm.max_map_count)."""
MAX_NBYTES: Final = 8 << 40
"""How many bytes all of them may have: there may be other clients, and a process has 128 TiB of addresses."""

_log = logging.getLogger(__name__)


class Mapping(NamedTuple):
    """One range of guest addresses."""

    address: int
    nbytes: int
    writable: bool
    file: tuple[int, int, int] | None
    """Device and inode of the file, and the offset in it; None if there was no descriptor."""
    serves: bool
    """Whether it is a region of guest memory: one that may not even be read is none."""


def _refuse(code: int, problem: str) -> OSError:
    return OSError(code, problem)


class DmaMap:
    """The mappings of one client.

    Args:
        memory: Guest RAM, as the function knows it; its regions are those of this map.
        port: How to reach RAM for which the client gives no descriptor.
        strict: Refuse RAM that can be taken away (`check_cannot_shrink`).
    """

    def __init__(self, memory: GuestMemory, port: RemotePort, *, strict: bool = False) -> None:
        self._memory = memory
        self._port = port
        self._strict = strict
        self._warned = False
        self._mappings: dict[int, Mapping] = {}  # by address
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._mappings)

    def map(self, flags: int, offset: int, address: int, nbytes: int, fd: int | None) -> None:
        """DMA_MAP.

        Args:
            flags: DMA_READ_ACCESS and DMA_WRITE_ACCESS.
            offset: In the file, in bytes.
            address: Of the first byte, as the device sees it.
            nbytes: How many.
            fd: Of a memfd or file that holds the bytes; it stays the caller's. None: only messages reach them.

        Raises:
            OSError: EEXIST if the range overlaps another one; ENOSPC if it is too large; EINVAL if it is wrong in
                another way, or its memory could go away under us. Whatever mmap(2) says.
        """
        writable = bool(flags & DMA_WRITE_ACCESS)
        file = self._check(flags, offset, address, nbytes, fd)
        mapping = Mapping(address, nbytes, writable, file, bool(flags & DMA_READ_ACCESS))
        if self._mappings.get(address) == mapping:
            return  # libvfio-user takes a repetition, too
        for other in self._mappings.values():
            if other.address < address + nbytes and address < other.address + other.nbytes:
                raise _refuse(errno.EEXIST, f"{nbytes:#x} bytes at {address:#x} overlap another mapping")
        if self._nbytes + nbytes > MAX_NBYTES:
            raise _refuse(errno.ENOSPC, f"{nbytes:#x} bytes more than the {self._nbytes:#x} that are mapped")
        if len(self._mappings) >= MAX_REGIONS:
            raise _refuse(errno.EINVAL, f"there are {MAX_REGIONS} mappings already")
        if mapping.serves:
            if fd is None:
                self._memory.add_remote(self._port, nbytes, address=address, writable=writable)
            else:
                self._check_cannot_shrink(fd, offset + nbytes)
                try:
                    self._memory.add_fd(fd, nbytes, address=address, offset=offset, writable=writable)
                except ConfigError as error:
                    raise _refuse(errno.EINVAL, error.problem) from None
        self._mappings[address] = mapping
        self._nbytes += nbytes

    @staticmethod
    def _check(flags: int, offset: int, address: int, nbytes: int, fd: int | None) -> tuple[int, int, int] | None:
        """Check what can be checked of a mapping alone; returns what tells its file from others."""
        if flags & ~(DMA_READ_ACCESS | DMA_WRITE_ACCESS):
            raise _refuse(errno.EINVAL, f"flags {flags:#x}")
        if nbytes == 0 or address + nbytes > 1 << 64:
            raise _refuse(errno.EINVAL, f"{nbytes:#x} bytes at {address:#x}")
        if nbytes > MAX_NBYTES:
            raise _refuse(errno.ENOSPC, f"{nbytes:#x} bytes")
        if fd is None:
            offset = 0
        if any(value % mmap.PAGESIZE for value in (offset, address, nbytes)):
            raise _refuse(errno.EINVAL, f"{nbytes:#x} bytes at {address:#x}, file offset {offset:#x}: no whole pages")
        if fd is None:
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _refuse(errno.EINVAL, "the descriptor is no memory")
        return status.st_dev, status.st_ino, offset

    def _check_cannot_shrink(self, fd: int, nbytes: int) -> None:
        """See that no access to the first `nbytes` of a file will ever end this process with SIGBUS.

        A memfd is sealed against shrinking, if it is not already. RAM that cannot be sealed (an ordinary file,
        hugetlbfs) is taken with one warning, unless `strict` forbids it.
        """
        if os.fstat(fd).st_size < nbytes:
            raise _refuse(errno.EINVAL, f"the file is shorter than the {nbytes:#x} bytes that are to be mapped")
        try:
            if is_on_huge_pages(fd):
                # Sealed or not: a hole punched into it may find no huge page to fill it again.
                raise _refuse(errno.EINVAL, "huge pages")
            if not get_seals(fd) & SEAL_SHRINK:
                add_seals(fd, SEAL_SHRINK)
        except OSError as error:
            problem = f"guest RAM that can be taken away: it cannot be sealed against shrinking ({error.strerror})"
            remedy = "a memory-backend-memfd with small pages can"
            if self._strict:
                raise _refuse(errno.EINVAL, f"{problem}, which --strict-memory refuses; {remedy}") from None
            if not self._warned:
                self._warned = True
                _log.warning("%s, and this process dies if it does; %s", problem, remedy)
        else:
            if os.fstat(fd).st_size < nbytes:  # it may have shrunk before it was sealed
                raise _refuse(errno.EINVAL, "the file has shrunk")

    def unmap(self, address: int, nbytes: int) -> None:
        """DMA_UNMAP of one mapping. OSError ENOENT unless it is exactly one of those made."""
        mapping = self._mappings.get(address)
        if mapping is None or mapping.nbytes != nbytes:
            raise _refuse(errno.ENOENT, f"there is no mapping of {nbytes:#x} bytes at {address:#x}")
        if mapping.serves:
            self._memory.remove(address, nbytes)
        del self._mappings[address]
        self._nbytes -= nbytes

    def clear(self) -> None:
        """Unmap all."""
        for address, mapping in tuple(self._mappings.items()):
            self.unmap(address, mapping.nbytes)
