"""``security_model=none``: as passthrough, but an owner that cannot be given is overlooked."""

from __future__ import annotations

import errno
from typing import Final

from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.security.model import SecurityModel

_OVERLOOKED: Final = frozenset({errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""Not allowed; an owner that the user namespace does not know; a file system without owners."""


class NoModel(SecurityModel):
    """As passthrough, but an owner that cannot be given is overlooked; no ACLs."""

    name = "none"

    def chown(self, entry: Entry, uid: int, gid: int) -> None:
        """See `SecurityModel.chown`."""
        try:
            super().chown(entry, uid, gid)
        except OSError as error:
            if error.errno not in _OVERLOOKED:
                raise
