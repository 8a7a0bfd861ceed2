"""``security_model=passthrough``: owners and modes of the guest are those of the host."""

from __future__ import annotations

from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.security.model import SecurityModel
from pyvirtfs.syscalls import fchownat


class Passthrough(SecurityModel):
    """Owners and modes of the guest are those of the host; what the host refuses is an error."""

    name = "passthrough"
    acls = True
    capabilities = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID")

    def chown(self, entry: Entry, uid: int, gid: int) -> None:
        """See `SecurityModel.chown`."""
        fchownat(entry.fd, b"", uid, gid)
