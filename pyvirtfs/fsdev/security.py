"""What differs between QEMU's security models of a local export, as strategies of the driver.

A model decides what becomes of the owner that a guest asks for, and which extended attributes it may touch.
"""

from __future__ import annotations

import abc
import errno
import os
from typing import ClassVar, Final

from pyvirtfs.syscalls import fchownat

_USER: Final = b"user."
ACL_NAMES: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


class SecurityModel(abc.ABC):
    """The model ``security_model=`` names."""

    __slots__ = ()

    name: ClassVar[str]
    acls: ClassVar[bool] = False
    """Whether POSIX ACLs are the host's."""
    capabilities: ClassVar[tuple[str, ...]] = ()
    """What the server's process must be able to do (capabilities(7)), unless the export is read-only."""

    @abc.abstractmethod
    def chown(self, fd: int, uid: int, gid: int) -> None:
        """Give an object its owner; 0xFFFFFFFF leaves the user or the group alone.

        Args:
            fd: A descriptor of the object, ``O_PATH`` or not.
            uid: Numeric user of the guest.
            gid: Numeric group of the guest.

        Raises:
            OSError: As fchownat(2), if the model does not overlook it.
        """

    def xattr_name(self, name: bytes) -> bytes:
        """The host's name of an extended attribute of the guest.

        Raises:
            OSError: EOPNOTSUPP, the guest has no access to attributes of this kind.
        """
        if (name.startswith(_USER) or (self.acls and name in ACL_NAMES)) and b"\0" not in name:
            return name
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def xattr_visible(self, name: bytes) -> bytes | None:
        """The guest's name of an extended attribute of the host; None if the guest does not see it."""
        return name if name.startswith(_USER) or (self.acls and name in ACL_NAMES) else None


class Passthrough(SecurityModel):
    """Owners and modes of the guest are those of the host; what the host refuses is an error."""

    __slots__ = ()

    name = "passthrough"
    acls = True
    capabilities = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID")

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """See `SecurityModel.chown`."""
        fchownat(fd, b"", uid, gid)


class NoModel(SecurityModel):
    """``security_model=none``: as passthrough, but an owner that cannot be given is overlooked; no ACLs."""

    __slots__ = ()

    name = "none"

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """See `SecurityModel.chown`."""
        try:
            fchownat(fd, b"", uid, gid)
        except OSError as error:
            if error.errno not in _OVERLOOKED:
                raise


_OVERLOOKED: Final = frozenset({errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""Not allowed; an owner that the user namespace does not know; a file system without owners."""

MODELS: Final[dict[str, SecurityModel]] = {model.name: model for model in (Passthrough(), NoModel())}
