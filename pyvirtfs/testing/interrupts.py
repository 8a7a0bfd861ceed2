"""An interrupt sink that remembers."""

from __future__ import annotations

from typing import NamedTuple

from pyvirtfs.pci import InterruptSink


class Message(NamedTuple):
    """An MSI-X message that a device sent."""

    vector: int
    address: int
    data: int


class RecordingSink:
    """Records every interrupt, and hands it on if there is somebody to hand it to.

    Args:
        forward: Another sink.
    """

    def __init__(self, forward: InterruptSink | None = None) -> None:
        self.messages: list[Message] = []
        """The messages, in order."""
        self.levels: list[bool] = []
        """The levels that INTx was set to, in order."""
        self._forward = forward

    @property
    def level(self) -> bool:
        """The level of INTx now."""
        return bool(self.levels) and self.levels[-1]

    @property
    def vectors(self) -> list[int]:
        """The vectors of the messages, in order."""
        return [message.vector for message in self.messages]

    def clear(self) -> None:
        """Forget what was recorded (but not the level)."""
        self.messages.clear()
        del self.levels[:-1]

    def msix(self, vector: int, address: int, data: int) -> None:
        """See `pyvirtfs.pci.InterruptSink`."""
        self.messages.append(Message(vector, address, data))
        if self._forward is not None:
            self._forward.msix(vector, address, data)

    def intx(self, level: bool) -> None:
        """See `pyvirtfs.pci.InterruptSink`."""
        self.levels.append(level)
        if self._forward is not None:
            self._forward.intx(level)
