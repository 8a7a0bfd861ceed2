"""One vfio-user client: its commands become accesses of a PCI function.

Commands are taken in the order in which they come. None of them runs a queue: a doorbell is noted by the function
(which is made with ``defer=True``), and the work is done after all that has arrived was answered, so that a VMM that
waits for a register is not kept waiting by file data.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from pyvirtfs.errors import MemoryAccessError
from pyvirtfs.vmm.vfio_user import messages as m
from pyvirtfs.vmm.vfio_user.dma import DmaMap
from pyvirtfs.vmm.vfio_user.negotiation import MAX_FDS, Terms, negotiate
from pyvirtfs.vmm.vfio_user.stream import Message, MessageStream, StreamError, close_all, error_reply, reply_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirtfs.memory import GuestMemory
    from pyvirtfs.pci import PciFunction
    from pyvirtfs.vmm.vfio_user.irqs import Irqs
    from pyvirtfs.vmm.vfio_user.regions import Regions

PATIENCE: Final = 5.0
"""Seconds that a client may let the server wait for it in one turn (`begin_turn`); QEMU gives the server as long."""
_ACCESS_NBYTES: Final = m.REGION_ACCESS.size
_POSTED_NBYTES: Final = frozenset(_ACCESS_NBYTES + count for count in (1, 2, 4, 8))

_unpack_access = m.REGION_ACCESS.unpack_from

_log = logging.getLogger(__name__)


class Hangup(Exception):  # noqa: N818 (not an error: clients come and go)
    """The connection is over."""


def _fields(number: int, body: bytes) -> tuple[int, ...]:
    """The fixed part of a command's body. OSError EINVAL if it is not all there."""
    layout = m.COMMANDS[number].request_layout
    if len(body) < layout.size:
        raise OSError(errno.EINVAL, f"{len(body)} bytes, and it has at least {layout.size}")
    return layout.unpack_from(body)


def _check_argsz(argsz: int, number: int) -> None:
    if argsz < m.COMMANDS[number].request_layout.size:
        raise OSError(errno.EINVAL, f"argsz is {argsz}")


class Connection:
    """The server's end.

    Args:
        connection: The connected socket; it belongs to this object from now on.
        function: What the client gets.
        memory: The function's guest RAM, without regions; they come and go with the client's mappings.
        irqs: The function's interrupts.
        regions: Its regions.
        strict: Refuse guest RAM that can be taken away.
        trace: Called with a line for each message.

    Attributes:
        received: How many messages came.
        refused: How many of them were answered with an error.
    """

    def __init__(
        self,
        connection: socket.socket,
        function: PciFunction,
        memory: GuestMemory,
        irqs: Irqs,
        regions: Regions,
        *,
        strict: bool = False,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        connection.setblocking(True)  # it is only read when there is something to read
        self._stream = MessageStream(connection)
        self._function = function
        self._irqs = irqs
        self._regions = regions
        self._dma = DmaMap(memory, self, strict=strict)
        self._memory = memory
        self._trace = trace
        self._terms: Terms | None = None
        self._next_id = 0
        self._asked: dict[tuple[int, ...], Message | None] = {}  # by id and command: replies that are waited for
        self._resets = 0
        self._dead: str | None = None  # why it cannot be asked for RAM any more
        self._deadline = 0.0
        self.begin_turn()
        self._hello_by = self._deadline
        self.received = 0
        self.refused = 0
        self._handlers: dict[int, Callable[[Message], tuple[bytes, ...]]] = {
            m.DMA_MAP: self._map,
            m.DMA_UNMAP: self._unmap,
            m.GET_INFO: self._get_info,
            m.GET_REGION_INFO: self._get_region_info,
            m.GET_REGION_IO_FDS: self._get_region_io_fds,
            m.GET_IRQ_INFO: self._get_irq_info,
            m.SET_IRQS: self._set_irqs,
            m.READ_REGION: self._read_region,
            m.WRITE_REGION: self._write_region,
            m.RESET: self._reset,
            m.WRITE_REGION_MULTI: self._write_region_multi,
        }

    def fileno(self) -> int:
        """Of the socket."""
        return self._stream.fileno()

    # --- messages ---

    def begin_turn(self) -> None:
        """From now on the client may be waited for again, for `PATIENCE` seconds until the next turn.

        However many answers it is slow to read or to give meanwhile: others are served by the same thread.
        """
        self._deadline = time.monotonic() + PATIENCE

    def serve(self) -> None:
        """Receive once and answer what came; to be called when there is something to read.

        Raises:
            Hangup: The connection is over, and `close` is left to do.
        """
        self._answer_all(self._receive())
        self.check()

    def check(self) -> None:
        """Raise Hangup if it turned out that the client is gone, or does not answer, or never said what it speaks."""
        if self._dead is not None:
            raise Hangup(self._dead)
        if self._terms is None and time.monotonic() > self._hello_by:
            raise Hangup("it sends no version, and others may wait")

    @property
    def patience(self) -> float | None:
        """When `check` is to be called even if nothing arrives, as time.monotonic(); None: never."""
        return self._hello_by if self._terms is None else None

    def _is_posted_write(self, message: Message) -> bool:
        """Whether it is the usual doorbell, which has a short way: then it has been rung."""
        header, body, fds = message
        if header[1] != m.WRITE_REGION or header[3] != m.FLAG_NO_REPLY or fds or self._trace or self._terms is None:
            return False
        nbytes = len(body)
        if nbytes not in _POSTED_NBYTES:
            return False
        offset, region, count = _unpack_access(body)
        if region >= m.BAR_REGIONS or nbytes - count != _ACCESS_NBYTES or offset > self._regions.sizes[region] - count:
            return False
        self._function.bar_write(region, offset, count, int.from_bytes(body[_ACCESS_NBYTES:], "little"))
        self.received += 1
        return True

    def _answer_all(self, messages: list[Message]) -> None:
        try:
            for message in messages:
                if not self._is_posted_write(message):
                    self._answer(message)
        except BaseException:  # nobody comes back to the rest of them
            for message in messages:
                close_all(message.fds)
            raise

    def _receive(self) -> list[Message]:
        try:
            found = self._stream.receive()
        except StreamError as error:
            self._answer_all(error.messages)
            if error.header is not None:
                self._send(error_reply(error.header, errno.EINVAL))
            raise Hangup(str(error)) from None
        except OSError as error:
            raise Hangup(error.strerror or "") from None
        if found is None:
            raise Hangup("")
        return found

    def _send(self, data: bytes) -> None:
        try:
            self._stream.send(data, self._deadline)
        except OSError as error:  # also a client that does not read
            raise Hangup(error.strerror or "") from None

    def _answer(self, message: Message) -> None:
        """Do what one message demands, and reply to it."""
        header, body, fds = message
        if self._asked and header[:2] in self._asked and header[3] & m.FLAG_TYPE == m.FLAG_REPLY:
            close_all(fds)
            self._asked[header[:2]] = message
            return
        self.received += 1
        if self._trace is not None:
            self._trace(m.describe(header, body, len(fds)))
        try:
            parts = self._perform(message)
        except OSError as error:
            self.refused += 1
            reply = error_reply(header, error.errno or errno.EIO)
            known = m.COMMANDS.get(header[1])
            # A guest whose RAM is refused just hangs, and QEMU says nothing of it.
            level = logging.WARNING if header[1] == m.DMA_MAP else logging.DEBUG
            _log.log(level, "%s refused: %s", known.name if known else f"command {header[1]}", error.strerror)
        else:
            reply = b"" if header[3] & m.FLAG_NO_REPLY else reply_to(header, *parts)
        finally:
            if fds:
                close_all(fds)
        if not header[3] & m.FLAG_NO_REPLY:
            self._send(reply)
            if self._trace is not None:
                self._trace(m.describe(m.HEADER.unpack_from(reply), reply[m.HEADER.size :]))
        if self._terms is None:
            raise Hangup("no version was agreed on")

    def _perform(self, message: Message) -> tuple[bytes, ...]:
        header, body, fds = message
        _, number, _, flags, _ = header
        if flags & m.FLAG_TYPE != m.FLAG_COMMAND:
            raise OSError(errno.EINVAL, "a reply to nothing")
        known = m.COMMANDS.get(number)
        if known is None or known.from_server:
            raise OSError(errno.EINVAL, "there is no such command")
        if len(fds) > (MAX_FDS if known.max_fds is None else known.max_fds):
            raise OSError(errno.EINVAL, f"{len(fds)} descriptors")
        if self._terms is None:
            if number != m.VERSION:
                raise OSError(errno.EINVAL, "the first command must be VERSION")
            self._terms, reply = negotiate(body)
            return (reply,)
        if number == m.VERSION:
            raise OSError(errno.EINVAL, "a version was agreed on already")
        handler = self._handlers.get(number)
        if handler is None:
            raise OSError(errno.EOPNOTSUPP, "this device has no migration")
        return handler(message)

    # --- commands ---

    def _map(self, message: Message) -> tuple[bytes, ...]:
        argsz, flags, offset, address, size = _fields(m.DMA_MAP, message.body)
        _check_argsz(argsz, m.DMA_MAP)
        self._dma.map(flags, offset, address, size, message.fds[0] if message.fds else None)
        return ()

    def _unmap(self, message: Message) -> tuple[bytes, ...]:
        argsz, flags, address, size = _fields(m.DMA_UNMAP, message.body)
        if not m.COMMANDS[m.DMA_UNMAP].request_layout.size <= argsz <= m.MAX_TRANSFER:
            raise OSError(errno.EINVAL, f"argsz is {argsz}")
        if flags == m.UNMAP_ALL and not address and not size:
            self._dma.clear()
        elif flags:
            raise OSError(errno.EINVAL, f"flags {flags:#x}, address {address:#x}, size {size:#x}")
        else:
            self._dma.unmap(address, size)
        return (message.body[: m.COMMANDS[m.DMA_UNMAP].reply_layout.size],)

    def _get_info(self, message: Message) -> tuple[bytes, ...]:
        argsz, *_ = _fields(m.GET_INFO, message.body)
        _check_argsz(argsz, m.GET_INFO)
        layout = m.COMMANDS[m.GET_INFO].reply_layout
        return (layout.pack(layout.size, m.DEVICE_RESET | m.DEVICE_PCI, m.NUM_REGIONS, m.NUM_IRQS),)

    def _get_region_info(self, message: Message) -> tuple[bytes, ...]:
        argsz, _, index, *_ = _fields(m.GET_REGION_INFO, message.body)
        _check_argsz(argsz, m.GET_REGION_INFO)
        flags, size = self._regions.info(index)
        layout = m.COMMANDS[m.GET_REGION_INFO].reply_layout
        return (layout.pack(layout.size, flags, index, 0, size, 0),)

    def _get_region_io_fds(self, message: Message) -> tuple[bytes, ...]:
        """There are none: each doorbell is a message."""
        argsz, flags, index, count = _fields(m.GET_REGION_IO_FDS, message.body)
        layout = m.COMMANDS[m.GET_REGION_IO_FDS].reply_layout
        if not layout.size <= argsz <= m.MAX_TRANSFER or flags or count or not self._regions.info(index)[0]:
            raise OSError(errno.EINVAL, f"argsz {argsz}, flags {flags:#x}, region {index}, count {count}")
        return (layout.pack(layout.size, 0, index, 0),)

    def _get_irq_info(self, message: Message) -> tuple[bytes, ...]:
        argsz, _, index, _ = _fields(m.GET_IRQ_INFO, message.body)
        _check_argsz(argsz, m.GET_IRQ_INFO)
        flags, count = self._irqs.info(index)
        layout = m.COMMANDS[m.GET_IRQ_INFO].reply_layout
        return (layout.pack(layout.size, flags, index, count),)

    def _set_irqs(self, message: Message) -> tuple[bytes, ...]:
        argsz, flags, index, start, count = _fields(m.SET_IRQS, message.body)
        _check_argsz(argsz, m.SET_IRQS)
        data = message.body[m.COMMANDS[m.SET_IRQS].request_layout.size :]
        self._irqs.set(flags, index, start, count, data, message.fds)
        return ()

    def _read_region(self, message: Message) -> tuple[bytes, ...]:
        offset, region, count = _fields(m.READ_REGION, message.body)
        self._regions.check(region, offset, count)
        if not count:
            return ()
        data = self._regions.read(region, offset, count)
        return (message.body[: m.REGION_ACCESS.size], data)

    def _write_region(self, message: Message) -> tuple[bytes, ...]:
        body = message.body
        offset, region, count = _fields(m.WRITE_REGION, body)
        if len(body) != m.REGION_ACCESS.size + count:
            raise OSError(errno.EINVAL, f"{len(body) - m.REGION_ACCESS.size} bytes to write, said to be {count}")
        self._regions.write(region, offset, body[m.REGION_ACCESS.size :])
        if region == m.CONFIG_REGION:
            self._irqs.refresh()  # this may have been a function level reset
        return (body[: m.REGION_ACCESS.size],) if count else ()

    def _write_region_multi(self, message: Message) -> tuple[bytes, ...]:
        body = message.body
        (count,) = _fields(m.WRITE_REGION_MULTI, body)
        layout = m.COMMANDS[m.WRITE_REGION_MULTI].reply_layout
        if self._terms is None or not self._terms.write_multiple:
            raise OSError(errno.EINVAL, "it was not negotiated")
        if len(body) != layout.size + count * m.SINGLE_WRITE.size:
            raise OSError(errno.EINVAL, f"{count} writes in {len(body)} bytes")
        done = 0
        for offset, region, nbytes, value in m.SINGLE_WRITE.iter_unpack(body[layout.size :]):
            if nbytes > 8:
                raise OSError(errno.EINVAL, f"a write of {nbytes} bytes among several")
            self._regions.write(region, offset, value.to_bytes(8, "little")[:nbytes])
            done += 1
        self._irqs.refresh()
        return (layout.pack(done),)

    def _reset(self, message: Message) -> tuple[bytes, ...]:
        del message
        self.reset()
        return ()

    def reset(self) -> None:
        """Reset the function; mappings and eventfds stay."""
        self._resets += 1
        self._function.reset()
        self._irqs.refresh()

    # --- RAM that the client does not share ---

    def read(self, address: int, nbytes: int) -> bytes:
        """Read guest RAM through the client (DMA_READ); see `pyvirtfs.memory.RemotePort`."""
        parts = []
        for start, count in self._turns(nbytes):
            reply = self._ask(m.DMA_READ, address + start, count, b"")
            parts.append(reply[m.DMA_ACCESS.size :])
            if len(parts[-1]) != count:
                raise MemoryAccessError(address, nbytes)
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write guest RAM through the client (DMA_WRITE); see `pyvirtfs.memory.RemotePort`."""
        for start, count in self._turns(len(data)):
            self._ask(m.DMA_WRITE, address + start, count, data[start : start + count])

    def _turns(self, nbytes: int) -> list[tuple[int, int]]:
        step = self._terms.max_transfer if self._terms is not None else m.MAX_TRANSFER
        return [(start, min(step, nbytes - start)) for start in range(0, nbytes, step)]

    def _ask(self, number: int, address: int, count: int, data: bytes | bytearray | memoryview) -> bytes:
        """Send the client a command and wait for its reply; what it sends meanwhile is answered first.

        It may change anything meanwhile, reset the function or take RAM away: then nothing of the request goes on.
        """
        if self._dead is not None:
            raise MemoryAccessError(address, count)
        identifier = self._next_id = (self._next_id + 1) & 0xFFFF
        size = m.HEADER.size + m.DMA_ACCESS.size + len(data)
        before = self._resets, self._memory.generation
        try:
            self._send(
                b"".join(
                    (
                        m.HEADER.pack(identifier, number, size, m.FLAG_COMMAND, 0),
                        m.DMA_ACCESS.pack(address, count),
                        data,
                    )
                )
            )
            reply = self._await(identifier, number)
        except Hangup as reason:
            self._dead = str(reason)
            raise MemoryAccessError(address, count) from None
        if reply.header[3] & m.FLAG_ERROR or (self._resets, self._memory.generation) != before:
            raise MemoryAccessError(address, count)
        return reply.body

    def _await(self, identifier: int, number: int) -> Message:
        key = identifier, number
        self._asked[key] = None
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        try:
            while (found := self._asked[key]) is None:
                left = self._deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):  # it may go on sending other things for ever
                    raise Hangup("it does not answer")
                self._answer_all(self._receive())
        finally:
            del self._asked[key]
        return found

    # --- the end ---

    def part(self, seconds: float) -> None:
        """Say that nothing more comes, and drop what the client still sends, until it leaves or time is up.

        QEMU aborts when a server ends with something unread in the socket, and lives on without the device otherwise.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        deadline = time.monotonic() + seconds
        try:
            self._stream.socket.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
                for message in self._receive():
                    close_all(message.fds)
        except (Hangup, OSError):
            return

    def close(self) -> None:
        """Forget the client: the function is reset, RAM unmapped, every descriptor closed. Never fails."""
        self._dead = ""
        for step in (self._function.reset, self._irqs.release, self._dma.clear, self._stream.close):
            try:
                step()
            except Exception as error:  # noqa: BLE001 (whatever one of them does, the others are done, too)
                _log.error("a bug in the function, or in the server", exc_info=error)
