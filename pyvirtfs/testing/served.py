"""A function behind a vfio-user socket, served by a thread of this process: for tests of clients."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from pyvirtfs.vmm.vfio_user import Loop, Server

if TYPE_CHECKING:
    from pyvirtfs.memory import GuestMemory
    from pyvirtfs.pci import PciFunction

_PATIENCE: Final = 10.0

FunctionT = TypeVar("FunctionT", bound="PciFunction")


class ServedFunction(Generic[FunctionT]):
    """Serves a function from here until `close`. Also a context manager, which closes it.

    Args:
        function: The function; made with ``defer=True`` if it has work of its own. It stays open.
        memory: Its guest RAM, without regions: they are the client's to give.
        path: Of the socket.
        options: Of `pyvirtfs.vmm.vfio_user.Server`.

    Raises:
        ConfigError: The socket cannot be made.
    """

    def __init__(self, function: FunctionT, memory: GuestMemory, path: str | os.PathLike[str], **options: Any) -> None:
        self.function = function
        self.memory = memory
        self.hangups: list[str] = []
        """Why each client has left; empty if it just did."""
        self.server = Server(function, memory, path, on_hangup=lambda _, why: self.hangups.append(why), **options)
        self.path = self.server.path
        self._loop = Loop()
        self._loop.servers.append(self.server)
        self._thread = threading.Thread(target=self._loop.run, name="vfio-user")
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; the socket stays, and nobody serves it. RuntimeError if it does not."""
        self._loop.stop()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise RuntimeError(f"the server is still at work after {_PATIENCE} s")

    def close(self) -> None:
        """End the thread, part from the client, remove the socket."""
        self.stop()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()
