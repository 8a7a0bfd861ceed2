"""``passthrough`` and ``none`` with other ids on the host than in the guest: ``uidmap``, ``gidmap``, ``squash``."""

from __future__ import annotations

from typing import Final

from pyvirtfs.fsdev.acl import ACL_NAMES, translate
from pyvirtfs.fsdev.driver import NONUNAME, Attributes
from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.ids import Ids
from pyvirtfs.fsdev.security.model import SecurityModel
from pyvirtfs.fsdev.security.none import NoModel
from pyvirtfs.fsdev.security.passthrough import Passthrough

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
        given = uid != NONUNAME or gid != NONUNAME
        if given:
            self.chown(entry, uid, gid)
            now = self.table.stat(entry.fd)  # chown(2) clears set-id bits
        return super().settle(entry, now, mode, NONUNAME, NONUNAME, parent, name, device) or given

    def getxattr(self, entry: Entry, name: bytes) -> bytes:
        """See `SecurityModel.getxattr`; access control lists hold ids, too."""
        value = super().getxattr(entry, name)
        return translate(value, self._users.to_guest, self._groups.to_guest) if name in ACL_NAMES else value

    def setxattr(self, entry: Entry, name: bytes, value: bytes, flags: int) -> None:
        """See `SecurityModel.setxattr`; EINVAL for an access control list with an id that no range of the map holds."""
        if name in ACL_NAMES:
            value = translate(value, self._users.to_host, self._groups.to_host)
        super().setxattr(entry, name, value, flags)


class TranslatedPassthrough(Passthrough, TranslatedModel):
    """``passthrough`` with other ids on the host."""


class TranslatedNoModel(NoModel, TranslatedModel):
    """``none`` with other ids on the host; an owner that cannot be given is overlooked."""


TRANSLATED: Final[dict[str, type[TranslatedModel]]] = {
    model.name: model for model in (TranslatedPassthrough, TranslatedNoModel)
}
"""The models in which ids can be translated."""
