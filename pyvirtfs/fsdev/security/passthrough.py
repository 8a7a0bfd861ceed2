"""``security_model=passthrough``: owners and modes of the guest are those of the host."""

from __future__ import annotations

from pyvirtfs.fsdev.security.model import SecurityModel


class Passthrough(SecurityModel):
    """Owners and modes of the guest are those of the host; what the host refuses is an error."""

    name = "passthrough"
    acls = True
    capabilities = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID")
