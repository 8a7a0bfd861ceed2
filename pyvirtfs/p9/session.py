"""What a server knows of its client, from one Tversion to the next (version(5))."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import ExportDriver, LockHolder
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.admission import Admission
from pyvirtfs.p9.dialects import table_without_session
from pyvirtfs.p9.fids import Fid, FidTable
from pyvirtfs.p9.requests import InFlight, Request

if TYPE_CHECKING:
    from pyvirtfs.p9.counters import Counters
    from pyvirtfs.p9.dialects import Dialect
    from pyvirtfs.p9.limits import Limits

DEFAULT_BLOCK_NBYTES: Final = 4096
"""The unit that payloads are rounded to where the export's file system does not tell."""


def payload_unit(msize: int, block_nbytes: int) -> int:
    """The largest payload that a client should ask for at a time: iounit, and blksize of Rgetattr.

    Args:
        msize: As negotiated.
        block_nbytes: Block size of the export's file system; 0 is taken for unknown.

    Returns:
        What fits a message behind its header (IOHDRSZ), rounded down to whole blocks if that leaves anything.
    """
    largest = msize - c.IO_HEADER_SIZE
    whole = largest - largest % block_nbytes if block_nbytes else largest
    return whole or largest


class Session:
    """The state that requests read and change; one thread only.

    Args:
        driver: The export.
        msize_limit: The largest msize to agree to.
        limits: What the client may use.
        dialects: Those that it may choose from; the first one is spoken before it has.
        counters: Shared with the server.

    Attributes:
        dialect: The one that is spoken; before a session, the one that errors are told in.
        operations: What to do for each of the 256 message types, now.
        decoders: How to read each of them.
        error_nbytes: The least room that a reply may have.
        msize: As negotiated; before that, `msize_limit`.
        iounit: Of files opened in it.
        fids: The fid table.
        in_flight: The requests that wait.
        admission: Where those wait that the export throttles; None: it throttles nothing.
    """

    __slots__ = (
        "_dialects",
        "_lock_limit",
        "_no_session",
        "_tables",
        "admission",
        "counters",
        "decoders",
        "dialect",
        "driver",
        "error_nbytes",
        "fids",
        "in_flight",
        "iounit",
        "msize",
        "msize_limit",
        "operations",
        "table",
    )

    def __init__(
        self,
        driver: ExportDriver[Any, Any],
        msize_limit: int,
        limits: Limits,
        dialects: tuple[Dialect, ...],
        counters: Counters,
    ) -> None:
        self.driver = driver
        self.msize_limit = msize_limit
        self.counters = counters
        self.fids = FidTable(driver, limits.fids, limits.xattr_bytes)
        self.table = self.fids.table
        self.in_flight = InFlight()
        self._lock_limit = limits.locks
        self._dialects = dialects
        self._tables = {dialect: dialect.table(readonly=driver.readonly) for dialect in dialects}
        self.admission = None if driver.throttle is None else Admission(driver.throttle)
        if self.admission is not None:
            for table in self._tables.values():
                self.admission.limit(table)
        self._no_session = table_without_session(dialects)
        self.end()

    def negotiate(self, msize: int, version: bytes) -> tuple[int, Dialect | None]:
        """What to answer to a Tversion (version(5)).

        Returns:
            The msize and the dialect of the Rversion; None: ``unknown``, none that is spoken here.

        Raises:
            OSError: EMSGSIZE: a known version, but an msize that nothing fits into. It is told in the dialect that was
                asked for.
        """
        dialect = self._find_dialect(version)
        if dialect is not None and msize < c.MIN_MSIZE:
            self._speak(dialect)
            raise OSError(errno.EMSGSIZE, f"msize {msize} is less than {c.MIN_MSIZE}")
        return min(msize, self.msize_limit), dialect

    def _find_dialect(self, version: bytes) -> Dialect | None:
        """The one that a client asks for, or else the longest that is what it asks for up to one of its periods.

        That is how version(5) has it: ``9P2000.x`` is answered with ``9P2000``, ``9P2000.L.x`` with ``9P2000.L``.
        """
        spoken = [each for each in self._dialects if version == each.name or version.startswith(each.name + b".")]
        return max(spoken, key=lambda dialect: len(dialect.name), default=None)

    def _speak(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.decoders = dialect.decoders
        self.error_nbytes = dialect.error_nbytes

    def begin(self, msize: int, dialect: Dialect) -> None:
        """Start a session, as negotiated."""
        self._speak(dialect)
        self.operations = self._tables[dialect]
        self.msize = msize
        self.iounit = payload_unit(msize, DEFAULT_BLOCK_NBYTES)

    def end(self) -> None:
        """Drop all fids and with them all locks. Requests in flight are not ended by this."""
        self.fids.clear()
        self._speak(self._dialects[0])
        self.operations = self._no_session
        self.msize = self.msize_limit
        self.iounit = payload_unit(self.msize, DEFAULT_BLOCK_NBYTES)

    def use(self, request: Request) -> None:
        """A request waits for the driver: keep what it uses, and the number that it will give to a new fid."""
        fids, fid, operation = self.fids, request.fid, request.operation
        fids.use(fid)
        if operation.claims:
            fid.claimed = True
        elif operation.makes_fid:
            if request.newfid == fid.number:
                fid.claimed = True
            else:
                request.reserved = fids.reserve(request.newfid)
        elif operation.two_fids:
            fids.use(request.other)
        elif operation.removes and not fid.retired:
            fids.drop(fid)

    def unuse(self, request: Request) -> None:
        """It has ended."""
        fids, fid, operation = self.fids, request.fid, request.operation
        if operation.claims:
            fid.claimed = False
        elif operation.makes_fid:
            if request.newfid == fid.number:
                fid.claimed = False
            else:
                request.reserved.discard(request.newfid)
        elif operation.two_fids:
            fids.unuse(request.other)
        fids.unuse(fid)

    def learn_block_size(self, node: Any) -> None:
        """Round payloads to the blocks of the file system that a node lies on, if the driver tells at once.

        Raises:
            OSError: The driver cannot even tell that.
        """
        answer = self.driver.statfs(node)
        if not isinstance(answer, Completion):
            self.iounit = payload_unit(self.msize, answer.bsize)

    def lock_holder(self, fid: Fid) -> LockHolder:
        """What the locks of a fid are held by."""
        holder = fid.holder
        if holder is None:
            holder = fid.holder = LockHolder(self, self._lock_limit)
        return holder
