"""Fids: the client's numbers for files, what stands behind each, and who still uses it (intro(5), "fid").

A `Fid` stands for one object for life: where a request makes its number denote another one (Twalk onto itself,
Tlcreate), a new `Fid` takes the number and the old one is retired. So a deferred request keeps the object that it was
started with, whatever happens to the number, and what a fid holds is given back exactly once: when it is retired and
its last user has ended.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.p9.constants import NOFID

if TYPE_CHECKING:
    from pyvirtfs.fsdev.driver import ExportDriver, LockHolder

# What a fid is.
UNOPENED: Final = 0
FILE: Final = 1
FOLDER: Final = 2
"""An open folder."""
XATTR_READ: Final = 3
XATTR_WRITE: Final = 4

_log = logging.getLogger(__name__)


class XattrWrite:
    """An attribute that a client is about to set: collected by Twrite, set by Tclunk.

    Args:
        name: Checked.
        size: Bytes announced; there are so many zeros until they are written.
        flags: XATTR_CREATE, XATTR_REPLACE or 0.
    """

    __slots__ = ("flags", "name", "size", "value", "written")

    def __init__(self, name: bytes, size: int, flags: int) -> None:
        self.name = name
        self.size = size
        self.flags = flags
        self.value = bytearray(size)
        self.written = 0
        """Bytes written without a gap, from the start."""


class Fid:
    """What one number denotes.

    Attributes:
        number: The client's number.
        kind: `UNOPENED`, `FILE`, `FOLDER`, `XATTR_READ` or `XATTR_WRITE`.
        node: The driver's node, None for `XATTR_READ`.
        uid: The n_uname of the attach that it descends from.
        is_folder: The object is a folder, opened or not.
        file: The driver's open file, for `FILE` and `FOLDER`.
        xattr: The value (bytes) of `XATTR_READ`, the `XattrWrite` of `XATTR_WRITE`.
        holder: What its locks are held by, once it asked for one.
        users: Requests in flight that use it.
        claimed: One of them changes what it is.
        retired: Its number does not denote it any more.
        listing: In 9P2000 and 9P2000.u, for `FOLDER`: the offset of the next Tread, and the driver's cookie for it.
        remove_on_clunk: In the same, for `FILE`: it was opened with ORCLOSE.

    The last two are set where they mean anything, and nowhere else: fids are made on every walk's way.
    """

    __slots__ = (
        "claimed",
        "file",
        "holder",
        "is_folder",
        "kind",
        "listing",
        "node",
        "number",
        "remove_on_clunk",
        "retired",
        "uid",
        "users",
        "xattr",
    )

    listing: tuple[int, int]
    remove_on_clunk: bool

    def __init__(self, number: int, node: Any, uid: int, is_folder: bool) -> None:
        self.number = number
        self.kind = UNOPENED
        self.node = node
        self.uid = uid
        self.is_folder = is_folder
        self.file: Any = None
        self.xattr: Any = None
        self.holder: LockHolder | None = None
        self.users = 0
        self.claimed = False
        self.retired = False

    def require_node(self) -> Any:
        """Its node.

        Raises:
            OSError: EINVAL: it is an attribute being read.
        """
        if self.node is None:
            raise OSError(errno.EINVAL, f"fid {self.number} is an extended attribute")
        return self.node

    def require_unopened(self) -> None:
        """Check that it can become something else.

        Raises:
            OSError: EINVAL: it is open, or an attribute. EBUSY: it is just being opened.
        """
        if self.kind != UNOPENED:
            raise OSError(errno.EINVAL, f"fid {self.number} is open")
        if self.claimed:
            raise OSError(errno.EBUSY, f"fid {self.number} is being opened")


class FidTable:
    """The fids of a session.

    Args:
        driver: Where handles are given back.
        limit: How many fids there may be.
        xattr_limit: How many bytes of attributes their fids may hold.

    Attributes:
        table: The fids by number, for hot paths to look into.
        xattr_nbytes: Bytes of attributes held.
    """

    __slots__ = ("_driver", "_limit", "_reserved", "_xattr_limit", "table", "xattr_nbytes")

    def __init__(self, driver: ExportDriver[Any, Any], limit: int, xattr_limit: int) -> None:
        self._driver = driver
        self._limit = limit
        self._xattr_limit = xattr_limit
        self._reserved: set[int] = set()
        self.table: dict[int, Fid] = {}
        self.xattr_nbytes = 0

    def __len__(self) -> int:
        return len(self.table)

    def find(self, number: int, code: int = errno.ENOENT) -> Fid:
        """The fid with that number.

        Raises:
            OSError: With errno `code`: there is none.
        """
        fid = self.table.get(number)
        if fid is None:
            raise OSError(code, f"fid {number} is unknown")
        return fid

    # --- numbers ---

    def check_new(self, number: int) -> None:
        """Check that a number can be given to a new fid.

        Raises:
            OSError: EINVAL: it is in use, or is NOFID. ENFILE: there are too many fids.
        """
        if number in self.table or number in self._reserved or number == NOFID:
            raise OSError(errno.EINVAL, f"fid {number} is in use")
        if len(self.table) + len(self._reserved) >= self._limit:
            raise OSError(errno.ENFILE, f"a session has at most {self._limit} fids")

    def reserve(self, number: int) -> set[int]:
        """Keep a number for a request in flight.

        Returns:
            Where it is kept; at its end the request takes it out there, whatever session there is by then.
        """
        self._reserved.add(number)
        return self._reserved

    def replace(self, old: Fid, new: Fid) -> None:
        """Let the number of `old` denote `new`."""
        self.table[old.number] = new
        self._retire(old)

    # --- the end ---

    def remove(self, fid: Fid) -> OSError | Completion[None] | None:
        """Free a fid's number and, if no request in flight uses it, what it holds.

        Returns:
            The error that closing its file gave, if any, or where the driver will tell it; the file is gone
            nevertheless.
        """
        del self.table[fid.number]
        fid.retired = True
        return None if fid.users else self._give_back(fid)

    def drop(self, fid: Fid) -> None:
        """As `remove`, where nobody is left to be told of errors."""
        del self.table[fid.number]
        self._retire(fid)

    def clear(self) -> None:
        """Free all fids and reserved numbers, as at the end of a session."""
        fids = list(self.table.values())
        self.table.clear()
        self._reserved = set()  # requests that still wait take their numbers out of the old one
        for fid in fids:
            self._retire(fid)

    def use(self, fid: Fid) -> None:
        """A request in flight uses it."""
        fid.users += 1

    def unuse(self, fid: Fid) -> None:
        """That request has ended."""
        fid.users -= 1
        if fid.retired and not fid.users:
            self._ignore(self._give_back(fid))

    def _retire(self, fid: Fid) -> None:
        fid.retired = True
        if not fid.users:
            self._ignore(self._give_back(fid))

    def _give_back(self, fid: Fid) -> OSError | Completion[None] | None:
        """Whatever a driver raises here, the rest is given back too. Nothing is given back twice."""
        outcome: OSError | Completion[None] | None = None
        node = fid.node
        if fid.holder is not None:
            holder, fid.holder = fid.holder, None
            try:
                self._driver.release_locks(node, holder)
            except Exception as error:  # noqa: BLE001  # as above
                outcome = self._failed("release_locks", error)
        if fid.file is not None:
            file, fid.file = fid.file, None
            outcome = self._close(file) or outcome
        if fid.xattr is not None:
            self.xattr_nbytes -= _xattr_cost(fid.xattr)
            fid.xattr = None
        if node is not None:
            fid.node = None
            failed = self.release(node)
            if outcome is None:
                outcome = failed
        return outcome

    # --- handles ---

    def release(self, node: Any) -> OSError | None:
        """Give a node back.

        Returns:
            What a driver raised that broke its contract; it is logged.
        """
        try:
            self._driver.release(node)
        except Exception as error:  # noqa: BLE001  # a driver's bug must not keep what else is to be given back
            return self._failed("release", error)
        return None

    def close_file(self, file: Any) -> None:
        """Close a file that is no fid's, where nobody is left to be told of errors."""
        self._ignore(self._close(file))

    def _close(self, file: Any) -> OSError | Completion[None] | None:
        try:
            answer = self._driver.close_file(file)
        except Exception as error:  # noqa: BLE001  # a driver's bug must not keep what else is to be given back
            return self._failed("close_file", error)
        return answer if isinstance(answer, Completion) else None

    def _failed(self, method: str, error: Exception) -> OSError:
        """The error that a guest may see."""
        if isinstance(error, OSError):
            return error
        _log.error("driver %s broke its contract in %s", type(self._driver).__qualname__, method, exc_info=error)
        return OSError(errno.EIO, f"{method} failed")

    def _ignore(self, outcome: OSError | Completion[None] | None) -> None:
        """Nobody waits for the end of a close_file; an error that comes of it later is logged."""
        if isinstance(outcome, Completion):
            try:
                outcome.on_done(_log_late_error)
            except RuntimeError as error:  # the driver gave the same completion to a request
                self._failed("close_file", error)

    # --- attributes ---

    def add_xattr(self, number: int, value: bytes, uid: int) -> None:
        """A new fid through which a value is read.

        Raises:
            OSError: ENOMEM: the session holds too much of them.
        """
        self.charge_xattr(len(value))
        fid = Fid(number, None, uid, False)
        fid.kind = XATTR_READ
        fid.xattr = value
        self.table[number] = fid

    def charge_xattr(self, nbytes: int) -> None:
        """Account for the bytes of an attribute; given back with the fid.

        Raises:
            OSError: ENOMEM: the session holds too much of them.
        """
        if self.xattr_nbytes + nbytes > self._xattr_limit:
            raise OSError(errno.ENOMEM, f"a session holds at most {self._xattr_limit} bytes of attributes")
        self.xattr_nbytes += nbytes


def _log_late_error(completion: Completion[None]) -> None:
    try:
        completion.result()
    except OSError as error:
        _log.warning("closing a file failed after its client was gone: %s", error)


def _xattr_cost(xattr: bytes | XattrWrite) -> int:
    return len(xattr) if isinstance(xattr, bytes) else xattr.size
