"""``passthrough`` and ``none`` with other ids on the host than in the guest: ``uidmap``, ``gidmap``, ``squash``.

A guest must not get at ids of the host that are not its own. So what is made by nobody in particular belongs to the
guest's nobody and not to the server's user; nobody in no range makes anything, with ``none`` neither, which overlooks
what the host refuses but not what the map does; and no program gets a set-id bit that runs it as somebody who is in no
range: neither one that was there nor, with ``none``, one whose owner could not be given.

The group is not always the guest's choice: in 9P2000 and 9P2000.u, and in a folder with the set-group-id bit, it is the
folder's, and that may be one of the host that the guest sees as 65534. There the new object has the folder's group on
the host, too, as in a user namespace of Linux.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from pyvirtfs.fsdev.acl import ACL_NAMES, translate
from pyvirtfs.fsdev.driver import NONUNAME, Attributes
from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.ids import Ids
from pyvirtfs.fsdev.security.model import SecurityModel
from pyvirtfs.fsdev.security.none import NoModel
from pyvirtfs.fsdev.security.passthrough import Passthrough
from pyvirtfs.fsdev.set_ids import SET_IDS

_UID, _GID = Attributes._fields.index("uid"), Attributes._fields.index("gid")

_new = tuple.__new__


class TranslatedModel(SecurityModel):
    """A model that keeps everything in the inode, but under the host's ids.

    Args:
        users: Translates users.
        groups: Translates groups.
    """

    def __init__(self, users: Ids, groups: Ids) -> None:
        super().__init__()
        self._users = users
        self._groups = groups
        self.presenter = self._present

    def _present(self, entry: Entry, host: tuple[int, ...]) -> Attributes:
        """What the guest sees."""
        del entry
        fields = list(host)
        fields[_UID] = self._users.to_guest(host[_UID])
        fields[_GID] = self._groups.to_guest(host[_GID])
        return _new(Attributes, fields)

    def chown(self, entry: Entry, uid: int, gid: int) -> None:
        """See `SecurityModel.chown`; EINVAL for an id that no range of the map holds."""
        super().chown(entry, self._users.to_host(uid), self._groups.to_host(gid))

    def chmod(self, entry: Entry, mode: int) -> None:
        """See `SecurityModel.chmod`; EPERM for a set-id bit of a user or group that is in no range."""
        if mode & SET_IDS and self._foreign_set_ids(self.table.stat(entry.fd), mode):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        super().chmod(entry, mode)

    def keeps_set_ids(self, entry: Entry, uid: int) -> bool:
        """See `SecurityModel.keeps_set_ids`; what belongs to others of the host, the guest's root is not root of."""
        if uid:
            return False
        now = self.table.stat(entry.fd)
        return self._users.holds(now.uid) and self._groups.holds(now.gid)

    def _foreign_set_ids(self, now: Attributes, mode: int) -> int:
        """The set-id bits of a mode that would run a program as somebody whom the guest cannot be."""
        if not mode & SET_IDS or not stat.S_ISREG(now.mode):
            return 0
        foreign = 0 if self._users.holds(now.uid) else mode & stat.S_ISUID
        return foreign if self._groups.holds(now.gid) else foreign | mode & stat.S_ISGID

    def settle(
        self,
        entry: Entry,
        now: Attributes,
        mode: int,
        uid: int,
        gid: int,
        parent: Entry,
        name: bytes,
        device: int = 0,
    ) -> bool:
        """See `SecurityModel.settle`."""
        uid, gid = self._users.to_host(self._users.maker(uid)), self._group_in(parent, self._groups.maker(gid))
        given = uid != NONUNAME or gid != NONUNAME
        if given:
            super().chown(entry, uid, gid)
            now = self.table.stat(entry.fd)  # chown(2) clears set-id bits
        mode &= ~self._foreign_set_ids(now, mode)
        return super().settle(entry, now, mode, NONUNAME, NONUNAME, parent, name, device) or given

    def _group_in(self, parent: Entry, gid: int) -> int:
        """The host's group of what is made in a folder: that of the folder if its own is what the guest asks for."""
        try:
            return self._groups.to_host(gid)
        except OSError:
            host = self.table.stat(parent.fd).gid
            if self._groups.to_guest(host) != gid:
                raise
            return host

    def getxattr(self, entry: Entry, name: bytes) -> bytes:
        """See `SecurityModel.getxattr`; access control lists hold ids, too."""
        value = super().getxattr(entry, name)
        return translate(value, self._users.to_guest, self._groups.to_guest) if name in ACL_NAMES else value

    def setxattr(self, entry: Entry, name: bytes, value: bytes, flags: int) -> None:
        """See `SecurityModel.setxattr`; EINVAL for an access control list with an id that no range of the map holds."""
        if name in ACL_NAMES:
            value = translate(value, self._users.to_host, self._groups.to_host)
        super().setxattr(entry, name, value, flags)


class TranslatedPassthrough(TranslatedModel, Passthrough):
    """``passthrough`` with other ids on the host."""


class TranslatedNoModel(TranslatedModel, NoModel):
    """``none`` with other ids on the host; an owner whom the host refuses is overlooked."""


TRANSLATED: Final[dict[str, type[TranslatedModel]]] = {
    model.name: model for model in (TranslatedPassthrough, TranslatedNoModel)
}
"""The models in which ids can be translated."""
