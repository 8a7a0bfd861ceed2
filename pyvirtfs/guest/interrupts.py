"""The guest's interrupt controller: MSI messages and INTx pins become calls of the driver's handlers.

A device raises an interrupt in the middle of whatever it does, most often inside the store that rang its doorbell. A
processor takes it after that instruction. So an interrupt is only noted here when it is raised; `Interrupts.deliver` is
the instruction boundary at which handlers run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MESSAGE_ADDRESS = 0xFEE00000
"""Where MSI messages are written (the local APIC of x86)."""

FIRST_VECTOR = 0x20
BUS_LINES = 4

Handler = Callable[[], None]


class Line:
    """A level-triggered interrupt line, possibly shared."""

    def __init__(self) -> None:
        self.level = False
        """Whether some device asserts it now."""
        self.raised = 0
        """How often it went from low to high."""
        self.handlers: list[Handler] = []
        """Called while the level is high; one of them must make its device lower it."""

    def set(self, level: bool) -> None:
        """The new level."""
        if level and not self.level:
            self.raised += 1
        self.level = level


class Interrupts:
    """An interrupt controller with 224 message vectors and level-triggered lines.

    `msix` may be called from any thread; everything else belongs to the guest's thread.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._pending: deque[int] = deque()
        self.lines = [Line() for _ in range(BUS_LINES)]
        """The lines of the bus, INTA# to INTD#, then those of the pins."""
        self.messages = 0
        """MSI messages that arrived."""
        self.unclaimed = 0
        """Messages to an address or vector that no driver has asked for, and INTx levels that nobody could lower."""

    def allocate(self, handler: Handler) -> tuple[int, int]:
        """Claim a message vector; returns the (address, data) to program into a device."""
        for data in range(FIRST_VECTOR, 0x100):
            if data not in self._handlers:
                self._handlers[data] = handler
                return MESSAGE_ADDRESS, data
        raise RuntimeError("all message vectors are taken")

    def release(self, data: int) -> None:
        """Give a message vector back."""
        self._handlers.pop(data, None)

    def pin(self) -> Pin:
        """A new interrupt sink for one device: its messages come here, its INTx line is its own."""
        line = Line()
        self.lines.append(line)
        return Pin(self, line)

    def line(self, number: int, level: bool) -> None:
        """One of the bus's lines has changed."""
        self.lines[number].set(level)

    def message(self, address: int, data: int) -> None:
        """A device wrote an MSI message."""
        self.messages += 1
        self._pending.append(data if address == MESSAGE_ADDRESS else -1)

    def deliver(self) -> int:
        """Run the handlers of all interrupts that are pending; returns how many ran."""
        count = 0
        pending = self._pending
        while pending:
            handler = self._handlers.get(pending.popleft())
            if handler is None:
                self.unclaimed += 1
                continue
            count += 1
            handler()
        for line in self.lines:
            if line.level:
                for handler in list(line.handlers):
                    count += 1
                    handler()
                self.unclaimed += line.level  # nobody could lower it
        return count


class Pin:
    """The interrupt connections of one device that sits on no bus: what `pyvirtfs.pci` calls an interrupt sink."""

    def __init__(self, controller: Interrupts, line: Line) -> None:
        self._controller = controller
        self.line = line

    def msix(self, vector: int, address: int, data: int) -> None:  # noqa: ARG002 (a message is its address and data)
        """A message of MSI-X vector `vector`."""
        self._controller.message(address, data)

    def intx(self, level: bool) -> None:
        """The new level of INTx."""
        self.line.set(level)
