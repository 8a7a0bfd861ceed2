"""The dialects that a server speaks: which requests there are in each, and what is done for them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.error_replies import (
    LINUX_NBYTES,
    PLAIN_NBYTES,
    UNIX_NBYTES,
    linux_error,
    plain_error,
    unix_error,
)
from pyvirtfs.p9.handlers import (
    attributes,
    content,
    control,
    folders,
    locks,
    plan9_create,
    plan9_files,
    plan9_stat,
    tree,
    xattrs,
)
from pyvirtfs.p9.operation import ERROR_NBYTES, Operation, refusal
from pyvirtfs.p9.readonly import READONLY_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_UNSUPPORTED: Final = refusal(errno.EOPNOTSUPP, "no such request, or not supported")
_READONLY: Final = refusal(errno.EROFS, "the export is readonly")
_NO_SESSION: Final = refusal(errno.EPROTO, "a session begins with a Tversion")
_NO_AUTH: Final = refusal(errno.ENOENT, "no authentication is needed")  # diod's clients understand no other errno so

NUMBER_OF_TYPES: Final = 256


class Dialect:
    """One version of the protocol.

    Args:
        coder: Its codec.
        error: ``error(tag, errno, room)`` makes the reply to a request that failed, of at most `room` bytes.
        error_nbytes: The least room that it needs.
        operations: Its requests, but those that it answers with EOPNOTSUPP.

    Attributes:
        name: As Tversion says it.
        vocabulary: Its messages.
        decoders: A decoder for each message type, for requests.
        error, error_nbytes: As above.
        unix: Whether it is 9P2000.u, which has numeric ids, links and special files where 9P2000 has none.
    """

    __slots__ = ("_operations", "decoders", "error", "error_nbytes", "name", "unix", "vocabulary")

    def __init__(
        self,
        coder: codec.Codec,
        error: Callable[[int, int, int], bytes],
        error_nbytes: int,
        operations: Iterable[Operation],
    ) -> None:
        self.vocabulary = coder.vocabulary
        self.name = coder.vocabulary.version
        self.decoders = coder.request_decoders
        self.error = error
        self.error_nbytes = error_nbytes
        self.unix = self.name == c.VERSION_9P2000_U
        self._operations = {operation.number: operation for operation in operations}

    @property
    def requests(self) -> frozenset[int]:
        """The types of its requests, but those that it answers with EOPNOTSUPP."""
        return frozenset(self._operations)

    def table(self, *, readonly: bool) -> list[Operation]:
        """What to do for each message type."""
        operations = [self._operations.get(number, _UNSUPPORTED) for number in range(NUMBER_OF_TYPES)]
        operations[c.TAUTH] = _NO_AUTH
        if readonly:
            for number in self._operations.keys() - READONLY_REQUESTS:
                operations[number] = _READONLY
            operations[c.TREMOVE] = tree.READONLY_REMOVE
        return operations


def table_without_session(dialects: Iterable[Dialect]) -> list[Operation]:
    """What to do before a Tversion: nothing is allowed but a Tversion, and a Tflush (it must never fail)."""
    known = frozenset[int]().union(*(dialect.requests for dialect in dialects))
    operations = [_NO_SESSION if number in known else _UNSUPPORTED for number in range(NUMBER_OF_TYPES)]
    for operation in control.OPERATIONS:
        operations[operation.number] = operation
    return operations


LINUX: Final = Dialect(
    codec.LINUX,
    linux_error,
    LINUX_NBYTES,
    [
        *control.OPERATIONS,
        *tree.OPERATIONS,
        *content.OPERATIONS,
        *attributes.OPERATIONS,
        *folders.OPERATIONS,
        *xattrs.OPERATIONS,
        *locks.OPERATIONS,
    ],
)
"""9P2000.L (diod's protocol.md). Tauth is left out: no authentication is needed, and that is how one says so."""

_OLDER: Final = (
    *control.OPERATIONS,
    *tree.OPERATIONS,
    *plan9_files.OPERATIONS,  # its Tclunk instead of that of the tree
    *plan9_create.OPERATIONS,
    *plan9_stat.OPERATIONS,
)

UNIX: Final = Dialect(codec.UNIX, unix_error, UNIX_NBYTES, _OLDER)
"""9P2000.u ("Plan 9 Remote Resource Protocol, Unix Extension")."""

PLAIN: Final = Dialect(codec.PLAIN, plain_error, max(PLAIN_NBYTES, ERROR_NBYTES), [*_OLDER, plan9_files.ATTACH_PLAIN])
"""9P2000 (section 5 of the Plan 9 manual)."""

DIALECTS: Final = (LINUX, UNIX, PLAIN)
"""All dialects; the first one is spoken before there is a session."""
