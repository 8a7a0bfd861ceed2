"""The interrupts of a vfio-user device: eventfds that the client assigns, and their masks (DEVICE_SET_IRQS).

It is what `pyvirtfs.pci` calls an interrupt sink. INTx is a level: each signal masks it until the client unmasks it,
and if the pin is still high then it is signalled again. MSI-X vectors have their masks in the function's own table; the
client keeps its guest's table to itself, and an eventfd assigned means that the vector is to be sent.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final, NoReturn

from pyvirtfs.pci.layout import MSIX_ENTRY_NBYTES
from pyvirtfs.vmm.vfio_user.messages import (
    ACTION_MASK,
    ACTION_TRIGGER,
    ACTION_UNMASK,
    DATA_BOOL,
    DATA_EVENTFD,
    DATA_NONE,
    ERR_IRQ,
    INTX_IRQ,
    IRQ_AUTOMASKED,
    IRQ_EVENTFD,
    IRQ_MASKABLE,
    IRQ_NORESIZE,
    MSIX_IRQ,
    NUM_IRQS,
    REQ_IRQ,
)

if TYPE_CHECKING:
    from pyvirtfs.pci import PciFunction

_ACTIONS: Final = ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER
_DATA: Final = DATA_NONE | DATA_BOOL | DATA_EVENTFD
_VECTOR_CONTROL: Final = 12
"""Offset in an entry of the MSI-X table."""
_EVENTFD: Final = "anon_inode:[eventfd]"

_eventfd_write = os.eventfd_write


def _refuse(problem: str) -> NoReturn:
    raise OSError(errno.EINVAL, problem)


class Irqs:
    """All interrupts of one function, for one client at a time.

    Args:
        function: The function. Its interrupts come here from now on.
    """

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        vectors = function.msix.vectors if function.msix is not None else 0
        self.counts: Final = (int(function.interrupt_pin > 0), 0, vectors, 1, 1)
        """How many interrupts each index has."""
        self._triggers: list[list[int | None]] = [[None] * count for count in self.counts]
        self._level = False
        self._masked = False  # INTx: by its last signal, or by the client
        self._masked_vectors: set[int] = set()  # MSI-X: by the client, without taking the eventfd away
        self.signals = 0
        """How many eventfds were signalled."""
        function.interrupts = self

    # --- what the function does ---

    def msix(self, vector: int, address: int, data: int) -> None:  # noqa: ARG002 (the client knows the message)
        """A message of an MSI-X vector."""
        self._signal(self._triggers[MSIX_IRQ][vector])

    def intx(self, level: bool) -> None:
        """The level of the pin."""
        self._level = level
        if level and not self._masked:
            self._signal_intx()

    def _signal_intx(self) -> None:
        if self._triggers[INTX_IRQ] and self._triggers[INTX_IRQ][0] is not None:
            self._masked = True
            self._signal(self._triggers[INTX_IRQ][0])

    def _signal(self, fd: int | None) -> None:
        if fd is not None:
            self.signals += 1
            with contextlib.suppress(BlockingIOError):  # signalled so often already that it cannot count on
                _eventfd_write(fd, 1)

    # --- what the client does ---

    def info(self, index: int) -> tuple[int, int]:
        """Flags and count of an index (DEVICE_GET_IRQ_INFO). OSError EINVAL if there is no such index."""
        if index >= NUM_IRQS:
            _refuse(f"there is no interrupt index {index}")
        flags = IRQ_EVENTFD
        if index == INTX_IRQ:
            flags |= IRQ_MASKABLE | IRQ_AUTOMASKED
        elif index == MSIX_IRQ:
            flags |= IRQ_NORESIZE
        return flags, self.counts[index]

    def set(self, flags: int, index: int, start: int, count: int, data: bytes, fds: list[int]) -> None:
        """DEVICE_SET_IRQS.

        Args:
            flags: One DATA_* and one ACTION_* bit.
            index: Which kind of interrupt.
            start: The first of them.
            count: How many.
            data: A byte for each, with DATA_BOOL.
            fds: The descriptors that came; those that are assigned are removed.

        Raises:
            OSError: EINVAL, nothing was changed.
        """
        self._check(flags, index, start, count, data, fds)
        action, kind = flags & _ACTIONS, flags & _DATA
        if count == 0:
            for which in range(self.counts[index]):
                self._assign(index, which, None)
            return
        chosen = range(start, start + count)
        meant = [which for which in chosen if kind != DATA_BOOL or data[which - start]]
        if action == ACTION_TRIGGER and kind == DATA_EVENTFD:
            taken = fds[:]
            fds.clear()
            for which in chosen:
                self._assign(index, which, taken[which - start] if taken else None)
        elif action == ACTION_TRIGGER:
            for which in meant:
                self._signal(self._triggers[index][which])
        elif kind != DATA_EVENTFD:
            for which in meant:
                self._mask(index, which, masked=action == ACTION_MASK)

    def _check(self, flags: int, index: int, start: int, count: int, data: bytes, fds: list[int]) -> None:
        action, kind = flags & _ACTIONS, flags & _DATA
        if flags & ~(_ACTIONS | _DATA) or action.bit_count() != 1 or kind.bit_count() != 1:
            _refuse(f"flags {flags:#x} are not one kind of data and one action")
        if len(data) != (count if kind == DATA_BOOL else 0):
            _refuse(f"{len(data)} bytes of data for {count} interrupts")
        self._check_range(action, kind, index, start, count)
        if fds and (kind != DATA_EVENTFD or len(fds) != count):
            _refuse(f"{len(fds)} descriptors for {count} interrupts")
        if action != ACTION_TRIGGER and kind == DATA_EVENTFD:
            _refuse("nobody is told when interrupts are masked")
        for fd in fds:
            if os.readlink(f"/proc/self/fd/{fd}") != _EVENTFD:
                _refuse("a descriptor is no eventfd")

    def _check_range(self, action: int, kind: int, index: int, start: int, count: int) -> None:
        if index >= NUM_IRQS:
            _refuse(f"there is no interrupt index {index}")
        if index in {ERR_IRQ, REQ_IRQ} and (action != ACTION_TRIGGER or count > 1):
            _refuse(f"interrupt index {index} can only be triggered, and there is one")
        if count == 0:
            if start or action != ACTION_TRIGGER or kind != DATA_NONE:
                _refuse("no interrupts, and this does not disable an index")
        elif start >= self.counts[index] or count > self.counts[index] - start:
            _refuse(f"interrupts {start} to {start + count - 1} of {self.counts[index]} of index {index}")

    def _assign(self, index: int, which: int, fd: int | None) -> None:
        """Take a new eventfd, or none; the old one is closed."""
        triggers = self._triggers[index]
        old, triggers[which] = triggers[which], fd
        if old is not None:
            os.close(old)
        if fd is not None:
            os.set_blocking(fd, False)  # it is the client's, and a full one must not hold the device up
        if index == INTX_IRQ:
            self._mask(index, which, masked=False)
        elif index == MSIX_IRQ:
            self._mask(index, which, masked=fd is None)

    def _mask(self, index: int, which: int, *, masked: bool) -> None:
        if index == INTX_IRQ:
            self._masked = masked
            if not masked and self._level:
                self._signal_intx()
        elif index == MSIX_IRQ and self._function.msix is not None:
            (self._masked_vectors.add if masked else self._masked_vectors.discard)(which)
            self._function.msix.write(which * MSIX_ENTRY_NBYTES + _VECTOR_CONTROL, 4, int(masked))

    def refresh(self) -> None:
        """The function may have been reset, which masks all vectors: those with an eventfd are sent all the same."""
        msix = self._function.msix
        if msix is not None:
            for vector, fd in enumerate(self._triggers[MSIX_IRQ]):
                if vector in self._masked_vectors or fd is None:
                    continue
                if msix.entries[vector * MSIX_ENTRY_NBYTES + _VECTOR_CONTROL] & 1:
                    self._mask(MSIX_IRQ, vector, masked=False)

    def release(self) -> None:
        """The client is gone: close every eventfd."""
        for index, count in enumerate(self.counts):
            for which in range(count):
                self._assign(index, which, None)
