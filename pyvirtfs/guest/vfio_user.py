"""A client for vfio-user: the guest drives a PCI function that lives behind a unix socket, as it does under QEMU.

It parses with the declarations of the messages, and shares no code with the server. What QEMU does for its guest is
done here: the table of MSI-X messages stays on this side, and the server is only told which vectors it may signal; an
access of a BAR counts as the end of an INTx interrupt, which is unmasked then.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.interrupts import Pin
from pyvirtfs.guest.msix_table import MsixTable
from pyvirtfs.memory import GuestMemory
from pyvirtfs.pci import layout as pci
from pyvirtfs.vmm.vfio_user import messages as m

TIMEOUT: Final = 5.0
"""Seconds that the server may take for an answer, as with QEMU."""
MAX_FDS: Final = 16
"""Descriptors that this side takes with one message."""

_HEADER_NBYTES: Final = m.Header.sizeof()
_ACCESS_NBYTES: Final = m.RegionAccess.sizeof()
_WITH_DESCRIPTORS: Final = (m.GET_REGION_INFO, m.GET_REGION_IO_FDS)
_BITS_READ_WRITE: Final = m.DMA_READ_ACCESS | m.DMA_WRITE_ACCESS


class Message(NamedTuple):
    """One message of the server."""

    header: Any
    """A parsed `Header`."""
    body: bytes


class Range(NamedTuple):
    """A range of guest addresses that the server may use."""

    address: int
    nbytes: int
    writable: bool


class Region(NamedTuple):
    """What the server says of a region."""

    flags: int
    nbytes: int


class VfioUserClient:
    """A PCI function behind a socket. It offers `pyvirtfs.guest.FunctionAccess`, and `progress` to wait for it.

    Writes to BARs are posted, those to configuration space are answered, as with QEMU. Where the server answers with an
    error, that is an OSError.

    Args:
        server: The path of its socket, or a connected socket, which belongs to the client from now on.
        memory: The guest's RAM, which is mapped as a whole.
        pin: Where the function's interrupts go: `DirectMachine.pin`.
        memory_fd: Descriptor of the file that holds the RAM, its regions one after the other; it stays the caller's.
            None: the server is given none, and has to ask for every byte.
        timeout: Seconds that the server may take for an answer.
        max_transfer: Bytes that it may ask for at once.

    Raises:
        DeviceError: The server breaks a rule, goes away or does not answer.
        OSError: It cannot be reached, or refuses.
    """

    def __init__(
        self,
        server: str | os.PathLike[str] | socket.socket,
        memory: GuestMemory,
        pin: Pin,
        *,
        memory_fd: int | None = None,
        timeout: float = TIMEOUT,
        max_transfer: int = m.MAX_TRANSFER,
    ) -> None:
        self.memory = memory
        self.timeout = timeout
        self.max_transfer = max_transfer
        self.capabilities: dict[str, Any] = {}
        """What the server said when it was met."""
        self.minor = 0
        """The minor version that was agreed on."""
        self.flags = 0
        """DEVICE_* flags."""
        self.regions: list[Region] = []
        self.irqs: list[tuple[int, int]] = []
        """IRQ_* flags and the number of interrupts, for each index."""
        self.reads_served = 0
        """How often the server asked for RAM."""
        self.writes_served = 0
        """How often the server changed RAM."""
        self.refused = 0
        """How often it asked for what is not RAM, or not its to write."""
        self.msix: MsixTable | None = None
        self._pin = pin
        self._intx_raised = False
        self._mapped: dict[int, Range] = {}
        self._eventfds: dict[int, tuple[int, int]] = {}  # index and number of the interrupt, by descriptor
        self._inbox: deque[Message] = deque()
        self._fds: list[int] = []  # that came with the message that is being received
        self._next_id = 0
        self._socket = server if isinstance(server, socket.socket) else _connect(server)
        try:
            self._socket.setblocking(False)
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
            self._negotiate()
            offset = 0
            for region in memory.regions:
                writable = not region.readonly
                self.map(region.address, region.nbytes, fd=memory_fd, offset=offset, writable=writable)
                offset += region.nbytes
            self._learn()
            self._connect_intx()
        except BaseException:
            self.close()
            raise

    # --- accesses ---

    def config_read(self, offset: int, size: int) -> int:
        """Read `size` bytes of configuration space."""
        return int.from_bytes(self.read_region(m.CONFIG_REGION, offset, size), "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of configuration space."""
        self.write_region(m.CONFIG_REGION, offset, _little(value, size))
        msix = self.msix
        if msix is not None and offset < msix.control + 2 and msix.control < offset + size:
            self._msix_control_changed(msix)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read `size` bytes at `offset` of a BAR."""
        if self.msix is not None and self.msix.holds(bar, offset):
            return self.msix.read(offset, size)
        value = int.from_bytes(self.read_region(bar, offset, size), "little")
        self._end_intx()
        return value

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset` of a BAR, without waiting for it."""
        msix = self.msix
        if msix is not None and msix.holds(bar, offset):
            self._update_vector(msix, msix.write(offset, size, value))
            return
        self.write_region(bar, offset, _little(value, size), posted=True)
        self._end_intx()

    def read_region(self, region: int, offset: int, nbytes: int) -> bytes:
        """Read a range of a region in one message."""
        access = {"offset": offset, "region": region, "count": nbytes}
        body = self.call(m.READ_REGION, m.RegionAccess.build(access))
        if not nbytes:
            return b""
        _check_echo("REGION_READ", m.RegionAccess, body, access)
        if len(body) != _ACCESS_NBYTES + nbytes:
            raise DeviceError(f"{len(body) - _ACCESS_NBYTES} bytes were read instead of {nbytes}")
        return body[_ACCESS_NBYTES:]

    def write_region(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write a range of a region in one message; `posted`: nobody answers, not even if it fails."""
        access = {"offset": offset, "region": region, "count": len(data)}
        body = m.RegionAccess.build(access) + data
        if posted:
            self._send(m.WRITE_REGION, body, flags=m.FLAG_COMMAND | m.FLAG_NO_REPLY)
            return
        answer = self.call(m.WRITE_REGION, body)
        if data:
            _check_echo("REGION_WRITE", m.RegionAccess, answer, access)

    def write_several(self, writes: Sequence[tuple[int, int, bytes]]) -> int:
        """Write up to 8 bytes each to several places in one message.

        Args:
            writes: Region, offset and bytes of each.

        Returns:
            How many were done.
        """
        body = m.WriteMulti.build({"wr_cnt": len(writes)})
        for region, offset, data in writes:
            value = int.from_bytes(data, "little")
            body += m.SingleWrite.build({"offset": offset, "region": region, "count": len(data), "data": value})
        return int(_parse("REGION_WRITE_MULTI", m.WriteMulti, self.call(m.WRITE_REGION_MULTI, body)).wr_cnt)

    def reset(self) -> None:
        """Reset the function. RAM stays mapped; the guest has to bring the function up again."""
        if not self.flags & m.DEVICE_RESET:
            raise DeviceError("the function cannot be reset")
        if self.msix is not None:
            if self.msix.enabled:
                self._disable(m.MSIX_IRQ)
            self.msix.reset()
        self._disconnect_intx()
        self.call(m.RESET)
        self._connect_intx()

    # --- RAM ---

    def map(self, address: int, nbytes: int, *, fd: int | None = None, offset: int = 0, writable: bool = True) -> None:
        """Let the server use a range of RAM.

        Args:
            address: Guest-physical address.
            nbytes: Length in bytes.
            fd: Of the file that holds it; None: the server has to ask.
            offset: In that file.
            writable: False: it may only read.
        """
        body = m.DmaMap.build(
            {
                "argsz": m.DmaMap.sizeof(),
                "flags": _BITS_READ_WRITE if writable else m.DMA_READ_ACCESS,
                "offset": offset if fd is not None else 0,
                "address": address,
                "size": nbytes,
            }
        )
        self._mapped[address] = Range(address, nbytes, writable)  # it may ask before it answers
        try:
            self.call(m.DMA_MAP, body, fds=() if fd is None else (fd,))
        except OSError:
            del self._mapped[address]
            raise

    def unmap(self, address: int, nbytes: int) -> None:
        """Take a range back. When this returns, the server uses it no more."""
        self._mapped.pop(address, None)
        fields = {"argsz": m.DmaUnmap.sizeof(), "flags": 0, "address": address, "size": nbytes}
        _check_echo("DMA_UNMAP", m.DmaUnmap, self.call(m.DMA_UNMAP, m.DmaUnmap.build(fields)), fields)

    def _serve(self, message: Message) -> None:
        """Do what the server asks for. DeviceError if that is nothing that it may ask for."""
        number = message.header.command
        if number not in {m.DMA_READ, m.DMA_WRITE}:
            raise DeviceError(f"the server sends command {number}")
        access = _parse(m.COMMANDS[number].name, m.DmaAccess, message.body)
        data = message.body[m.DmaAccess.sizeof() :]
        if access.count > self.max_transfer or len(data) != (access.count if number == m.DMA_WRITE else 0):
            raise DeviceError(f"{m.COMMANDS[number].name} of {access.count} bytes, with {len(data)} bytes")
        inside = any(
            each.address <= access.address
            and access.address + access.count <= each.address + each.nbytes
            and (each.writable or number == m.DMA_READ)
            for each in self._mapped.values()
        )
        answer, flags, error = m.DmaAccess.build(access), m.FLAG_REPLY, 0
        if not inside:
            self.refused += 1
            answer, flags, error = b"", m.FLAG_REPLY | m.FLAG_ERROR, errno.ENODEV
        elif number == m.DMA_READ:
            self.reads_served += 1
            answer += self.memory.read(access.address, access.count)
        else:
            self.writes_served += 1
            self.memory.write(access.address, data)
        if not message.header.flags & m.FLAG_NO_REPLY:
            self._send(number, answer, flags=flags, error=error, identifier=message.header.id)

    # --- waiting ---

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    def progress(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for an interrupt or a message, and take it; False if there was none."""
        if self._inbox:
            self._take(self._inbox.popleft())
            return True
        ready = self._poll.poll(timeout * 1000)
        for fd, _ in ready:
            if fd == self._socket.fileno():
                self._take(self._receive(time.monotonic() + self.timeout))
            elif fd in self._eventfds:
                self._interrupt(fd, *self._eventfds[fd])
        return bool(ready)

    def _take(self, message: Message) -> None:
        if message.header.flags & m.FLAG_TYPE != m.FLAG_COMMAND:
            raise DeviceError(f"a reply to nothing: id {message.header.id}")
        self._serve(message)

    # --- interrupts ---

    def _interrupt(self, fd: int, index: int, which: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        if index == m.MSIX_IRQ and self.msix is not None:
            self._pin.msix(which, *self.msix.message(which))
        elif index == m.INTX_IRQ:
            self._intx_raised = True
            self._pin.intx(True)

    def _msix_control_changed(self, msix: MsixTable) -> None:
        control = self.config_read(msix.control, 2)
        was_enabled, msix.enabled = msix.enabled, bool(control & pci.MSIX_CONTROL_ENABLE)
        msix.function_masked = bool(control & pci.MSIX_CONTROL_MASK)
        if was_enabled and not msix.enabled:
            self._disable(m.MSIX_IRQ)
            msix.held.clear()
            self._connect_intx()
        elif msix.enabled:
            if not was_enabled:
                self._disconnect_intx()
            for vector in range(msix.vectors):
                self._update_vector(msix, vector)

    def _update_vector(self, msix: MsixTable, vector: int) -> None:
        """Let the server signal a vector, or not any more."""
        wanted = msix.wanted(vector)
        assigned = (m.MSIX_IRQ, vector) in self._eventfds.values()
        if wanted and not assigned:
            self._assign(m.MSIX_IRQ, vector)
            if vector in msix.held:
                msix.held.remove(vector)
                self._pin.msix(vector, *msix.message(vector))
        elif assigned and not wanted and msix.enabled:
            self._set_irqs(m.DATA_EVENTFD | m.ACTION_TRIGGER, m.MSIX_IRQ, vector, 1)
            if self._forget(m.MSIX_IRQ, vector):
                msix.held.add(vector)

    def _connect_intx(self) -> None:
        if self.irqs[m.INTX_IRQ][1]:
            self._assign(m.INTX_IRQ, 0)

    def _disconnect_intx(self) -> None:
        if (m.INTX_IRQ, 0) in self._eventfds.values():
            self._disable(m.INTX_IRQ)
        self._intx_raised = False
        self._pin.intx(False)

    def _end_intx(self) -> None:
        """Whatever was accessed: it may have been what the interrupt was for. If not, the server signals it again."""
        if self._intx_raised:
            self._intx_raised = False
            self._pin.intx(False)
            self._set_irqs(m.DATA_NONE | m.ACTION_UNMASK, m.INTX_IRQ, 0, 1)

    def _assign(self, index: int, which: int) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._eventfds[fd] = (index, which)
        self._poll.register(fd, select.POLLIN)
        self._set_irqs(m.DATA_EVENTFD | m.ACTION_TRIGGER, index, which, 1, fds=(fd,))

    def _disable(self, index: int) -> None:
        self._set_irqs(m.DATA_NONE | m.ACTION_TRIGGER, index, 0, 0)
        for assigned, which in list(self._eventfds.values()):
            if assigned == index:
                self._forget(index, which)

    def _forget(self, index: int, which: int) -> bool:
        """Close an interrupt's eventfd; returns whether it was signalled last."""
        (fd,) = (fd for fd, key in self._eventfds.items() if key == (index, which))
        del self._eventfds[fd]
        self._poll.unregister(fd)
        try:
            return os.eventfd_read(fd) > 0
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    def _set_irqs(self, flags: int, index: int, start: int, count: int, *, fds: Sequence[int] = ()) -> None:
        fields = {"argsz": m.SetIrqs.sizeof(), "flags": flags, "index": index, "start": start, "count": count}
        self.call(m.SET_IRQS, m.SetIrqs.build(fields), fds=fds)

    # --- meeting the server ---

    def _negotiate(self) -> None:
        wishes = {
            "max_msg_fds": MAX_FDS,
            "max_data_xfer_size": self.max_transfer,
            "pgsizes": 4096,
            "write_multiple": True,
        }
        text = json.dumps({"capabilities": wishes}).encode() + b"\0"
        body = self.call(m.VERSION, m.Version.build({"major": 0, "minor": 1}) + text)
        version = _parse("VERSION", m.Version, body)
        if version.major != 0 or version.minor > 1:
            raise DeviceError(f"the server speaks version {version.major}.{version.minor}")
        self.minor = version.minor
        text = body[m.Version.sizeof() :]
        if not text:
            return
        if text[-1]:
            raise DeviceError("the server's capabilities do not end in a NUL")
        try:
            self.capabilities = dict(json.loads(text[:-1]).get("capabilities", {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise DeviceError(f"the server's capabilities make no sense: {error}") from None

    def _learn(self) -> None:
        """What the device has; as much as QEMU demands must be there."""
        device = self._ask(m.GET_INFO, flags=0, num_regions=0, num_irqs=0)
        self.flags = device.flags
        if not device.flags & m.DEVICE_PCI or device.num_regions <= m.CONFIG_REGION or device.num_irqs <= m.MSIX_IRQ:
            raise DeviceError(f"no PCI device: flags {device.flags:#x}, {device.num_regions} regions")
        for index in range(device.num_regions):
            region = self._ask(m.GET_REGION_INFO, flags=0, index=index, cap_offset=0, size=0, offset=0)
            self.regions.append(Region(region.flags, region.size))
        for index in range(device.num_irqs):
            irq = self._ask(m.GET_IRQ_INFO, flags=0, index=index, count=0)
            self.irqs.append((irq.flags, irq.count))
        self.msix = self._find_msix()
        if self.msix is not None and self.irqs[m.MSIX_IRQ][1] != self.msix.vectors:
            raise DeviceError(f"{self.msix.vectors} MSI-X vectors, and {self.irqs[m.MSIX_IRQ][1]} interrupts for them")

    def _ask(self, number: int, **fields: int) -> Any:
        """A command whose answer has the fields of the question."""
        command = m.COMMANDS[number]
        nbytes = command.request.sizeof()
        body = self.call(number, command.request.build({"argsz": nbytes, **fields}))
        answer = _parse(command.name, command.reply, body)
        if answer.argsz < nbytes or answer.get("index", 0) != fields.get("index", 0):
            raise DeviceError(f"{command.name}: {answer}")
        return answer

    def _find_msix(self) -> MsixTable | None:
        if not self.config_read(pci.STATUS, 2) & pci.STATUS_CAPABILITIES:
            return None
        where = self.config_read(pci.CAPABILITIES, 1) & 0xFC
        for _ in range(48):
            if where < pci.FIRST_CAPABILITY:
                break
            if self.config_read(where, 1) == pci.CAP_MSIX:
                parsed = pci.MSIX.parse(self.read_region(m.CONFIG_REGION, where, pci.MSIX.sizeof()))
                return MsixTable(where, parsed)
            where = self.config_read(where + 1, 1) & 0xFC
        return None

    # --- messages ---

    def call(self, number: int, body: bytes = b"", *, fds: Sequence[int] = ()) -> bytes:
        """Send a command and wait for its reply; what the server asks for meanwhile it gets.

        Args:
            number: Which command.
            body: What follows the header.
            fds: Descriptors that go with it.

        Returns:
            What follows the reply's header.

        Raises:
            OSError: The error of the reply.
            DeviceError: The reply is none to this command, or does not come.
        """
        deadline = time.monotonic() + self.timeout
        identifier = self._next_id = self._next_id + 1 & 0xFFFF
        self._send(number, body, fds=fds, identifier=identifier)
        while True:
            message = self._inbox.popleft() if self._inbox else self._receive(deadline)
            header = message.header
            if header.flags & m.FLAG_TYPE == m.FLAG_COMMAND:
                self._serve(message)
                continue
            if header.flags & m.FLAG_TYPE != m.FLAG_REPLY or (header.id, header.command) != (identifier, number):
                raise DeviceError(f"command {number} id {identifier} is answered with {header}")
            if header.flags & m.FLAG_ERROR:
                if message.body:
                    raise DeviceError(f"an error with {len(message.body)} bytes")
                raise OSError(header.error, f"{m.COMMANDS[number].name}: {os.strerror(header.error)}")
            return message.body

    def _send(
        self,
        number: int,
        body: bytes,
        *,
        flags: int = m.FLAG_COMMAND,
        error: int = 0,
        identifier: int = 0,
        fds: Sequence[int] = (),
    ) -> None:
        """Send one message. What comes meanwhile is kept, so that two that both send do not wait for each other."""
        size = _HEADER_NBYTES + len(body)
        header = {"id": identifier, "command": number, "size": size, "flags": flags, "error": error}
        rest = memoryview(m.Header.build(header) + body)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        deadline = time.monotonic() + self.timeout
        while rest:
            try:
                sent = self._socket.sendmsg([rest], ancillary)
            except BlockingIOError:
                if self._wait(select.POLLIN | select.POLLOUT, deadline) & select.POLLIN:
                    self._inbox.append(self._receive(deadline))
                continue
            except OSError as broken:
                raise DeviceError(f"the server is gone: {broken.strerror}") from None
            rest, ancillary = rest[sent:], []

    def _receive(self, deadline: float) -> Message:
        """Receive one message."""
        try:
            header = m.Header.parse(self._receive_bytes(_HEADER_NBYTES, deadline))
            if not _HEADER_NBYTES <= header.size <= _HEADER_NBYTES + _ACCESS_NBYTES + m.MAX_TRANSFER:
                raise DeviceError(f"a message of {header.size} bytes")
            body = self._receive_bytes(header.size - _HEADER_NBYTES, deadline)
            if self._fds and not (header.flags & m.FLAG_REPLY and header.command in _WITH_DESCRIPTORS):
                raise DeviceError(f"descriptors come with {header}")
            return Message(header, body)
        finally:
            while self._fds:  # none is of any use here: a region can always be read and written by messages
                os.close(self._fds.pop())

    def _receive_bytes(self, nbytes: int, deadline: float) -> bytes:
        found = bytearray()
        while len(found) < nbytes:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    nbytes - len(found), socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            except OSError as broken:
                raise DeviceError(f"the server is gone: {broken.strerror}") from None
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds += array.array("i", payload[: len(payload) // 4 * 4])
            if flags & socket.MSG_CTRUNC:
                raise DeviceError(f"more than {MAX_FDS} descriptors come with a message")
            if not data:
                raise DeviceError("the server has closed the connection")
            found += data
        return bytes(found)

    def _wait(self, events: int, deadline: float) -> int:
        """Wait for the socket; DeviceError when time is up."""
        poll = select.poll()
        poll.register(self._socket, events)
        ready = poll.poll(max(deadline - time.monotonic(), 0.0) * 1000)
        if not ready:
            raise DeviceError("the server does not answer")
        return ready[0][1]

    # --- the end ---

    def close(self) -> None:
        """Leave. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.close()
        while self._eventfds:
            os.close(self._eventfds.popitem()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _connect(path: str | os.PathLike[str]) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(os.fspath(path))
    except OSError:
        client.close()
        raise
    return client


def _little(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def _parse(name: str, declaration: Any, body: bytes) -> Any:
    """The fixed part of a body; DeviceError if it is not all there."""
    if len(body) < declaration.sizeof():
        raise DeviceError(f"{name}: {len(body)} bytes")
    return declaration.parse(body)


def _check_echo(name: str, declaration: Any, body: bytes, fields: dict[str, int]) -> None:
    answer = _parse(name, declaration, body)
    if any(answer[field] != value for field, value in fields.items()):
        raise DeviceError(f"{name}: {fields} was answered with {answer}")
