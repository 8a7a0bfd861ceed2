"""The dialects that a server speaks: which requests there are in each, and what is done for them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.handlers import attributes, content, control, folders, locks, tree, xattrs
from pyvirtfs.p9.operation import Operation, refusal
from pyvirtfs.p9.readonly import READONLY_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNSUPPORTED: Final = refusal(errno.EOPNOTSUPP, "no such request, or not supported")
_READONLY: Final = refusal(errno.EROFS, "the export is readonly")
_NO_SESSION: Final = refusal(errno.EPROTO, "a session begins with a Tversion")
_NO_AUTH: Final = refusal(errno.ENOENT, "no authentication is needed")  # diod's clients understand no other errno so

NUMBER_OF_TYPES: Final = 256


class Dialect:
    """One version of the protocol.

    Args:
        name: As Tversion says it.
        operations: Its requests, but those that it answers with EOPNOTSUPP.
    """

    __slots__ = ("_operations", "name")

    def __init__(self, name: bytes, operations: Iterable[Operation]) -> None:
        self.name = name
        self._operations = {operation.number: operation for operation in operations}

    def table(self, *, readonly: bool) -> list[Operation]:
        """What to do for each message type."""
        operations = [self._operations.get(number, _UNSUPPORTED) for number in range(NUMBER_OF_TYPES)]
        operations[c.TAUTH] = _NO_AUTH
        if readonly:
            for number in self._operations.keys() - READONLY_REQUESTS:
                operations[number] = _READONLY
            operations[c.TREMOVE] = tree.READONLY_REMOVE
        return operations

    def table_without_session(self) -> list[Operation]:
        """The same before a Tversion: nothing is allowed but a Tversion, and a Tflush (it must never fail)."""
        operations = [_NO_SESSION if number in self._operations else _UNSUPPORTED for number in range(NUMBER_OF_TYPES)]
        for operation in control.OPERATIONS:
            operations[operation.number] = operation
        return operations


LINUX: Final = Dialect(
    c.VERSION_9P2000_L,
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

DIALECTS: Final = (LINUX,)
"""All dialects; the first one is spoken before there is a session."""
