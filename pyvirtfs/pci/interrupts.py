"""How interrupts leave a function."""

from __future__ import annotations

from typing import Protocol


class InterruptSink(Protocol):
    """What an embedder gives a function to be interrupted by it.

    Both are called in the thread that runs the device, never while the guest has masked or disabled the interrupt.
    """

    def msix(self, vector: int, address: int, data: int) -> None:
        """Deliver a message: a 32-bit write of `data` to guest-physical `address`, as `vector` of the function says."""
        ...

    def intx(self, level: bool) -> None:
        """The level of the function's interrupt pin has changed."""
        ...
