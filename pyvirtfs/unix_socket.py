"""Listening unix sockets: private from their first moment, stale ones replaced, live ones refused (unix(7))."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Final

from pyvirtfs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PATH: Final = 107
"""Bytes of a unix socket's path (unix(7))."""


class UnixListener:
    """A listening stream socket that only this user may connect to.

    Args:
        path: Where. A socket file that nobody listens at is replaced.
        option: How messages call whatever names the path.
        backlog: How many clients may wait to be accepted.

    Raises:
        ConfigError: The path is too long, or somebody listens there already, or it is no socket, or it cannot be made.
    """

    def __init__(self, path: str, *, option: str = "--socket", backlog: int = 16) -> None:
        self.path: Final = path
        if len(os.fsencode(path)) > MAX_PATH:
            raise ConfigError(option, f"{path!r} is too long: a socket's path may have {MAX_PATH} bytes")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _one_at_a_time(path):
                _remove_stale(path, option)
                # Linux gives the file that bind(2) makes the mode that the socket has, less the umask: there is no
                # moment in which it is another one, and no path is followed to change it.
                os.fchmod(self._socket.fileno(), 0o600)
                self._socket.bind(path)
                status = os.lstat(path)
                self._identity = status.st_dev, status.st_ino
                self._socket.listen(backlog)
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            problem, folder = error.strerror, os.path.dirname(path)
            if folder and not os.path.exists(folder):
                problem = f"there is no folder {folder!r}, make it first"
            raise ConfigError(option, f"{path!r} cannot be made: {problem}") from None
        except ConfigError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Its descriptor, readable when a client waits."""
        return self._socket.fileno()

    def accept(self) -> socket.socket:
        """The next client.

        Raises:
            OSError: As accept(2); EAGAIN if there is none.
        """
        return self._socket.accept()[0]

    def close(self) -> None:
        """Listen no more, and remove the socket file if it is still the one that was made. Idempotent."""
        self._socket.close()
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)


@contextlib.contextmanager
def _one_at_a_time(path: str) -> Iterator[None]:
    """Keep others from making a socket in the same folder meanwhile, who might take ours for a stale one.

    If somebody locks the folder for longer, that is none of us.
    """
    try:
        folder = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        # A folder that may be written to and not be read (mode 0733) has nothing to lock, and a file for that would
        # have to stay there for good. What may happen without is no danger: of two that are started for one path at
        # the same moment, both with leave to remove the other's file, one may listen where nobody can connect.
        yield
        return
    deadline = time.monotonic() + 1
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            else:
                break
        yield
    finally:
        os.close(folder)


def _remove_stale(path: str, option: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(option, f"{path!r} exists, and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its backlog is full
            pass
    raise ConfigError(option, f"somebody listens at {path!r} already")
