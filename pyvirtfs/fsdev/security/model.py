"""What differs between QEMU's security models of a local export: the strategy that the driver asks.

A model decides what the owner, the mode and the type of an object are, for the guest and for the host, and which
extended attributes the guest may touch. Each export has a model of its own, which knows the export's entries.

The methods here do as a model does that keeps everything where the host keeps it: in the inode. Where a model differs
on the way of the most frequent requests, the driver looks at an attribute (`SecurityModel.presenter`,
`SecurityModel.file_mode`, `SecurityModel.hidden`) and makes no call if there is nothing to do.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import ClassVar, Final, TypeAlias

from pyvirtfs.fsdev.acl import ACL_NAMES
from pyvirtfs.fsdev.driver import NONUNAME, Attributes
from pyvirtfs.fsdev.entries import Entry, EntryTable
from pyvirtfs.fsdev.set_ids import without_set_ids
from pyvirtfs.syscalls import (
    chmod_descriptor,
    fchownat,
    get_xattr,
    link_descriptor,
    list_xattr,
    remove_xattr,
    set_xattr,
)

USER: Final = b"user."
MODE: Final = 0o7777

Presenter: TypeAlias = Callable[[Entry, tuple[int, ...]], Attributes]
"""Makes of what statx(2) told of an object, the fields of `Attributes`, what the guest sees."""


class SecurityModel:
    """The model ``security_model=`` names, of one export.

    Attributes:
        table: The entries of the export.
        presenter: What the guest sees of the attributes that the host has; None: just those.
        file_mode: The mode that every new regular file has on the host; None: the one that the guest asks for.
    """

    name: ClassVar[str]
    acls: ClassVar[bool] = False
    """Whether POSIX ACLs are the host's."""
    capabilities: ClassVar[tuple[str, ...]] = ()
    """What the server's process must be able to do (capabilities(7)), unless the export is read-only."""
    mapped: ClassVar[bool] = False
    """Whether owner, mode and type of the guest are kept beside the object, and everything but folders is stored as a
    regular file of the server's user."""
    hidden: ClassVar[frozenset[bytes]] = frozenset()
    """Names that are not there for the guest, in any folder, and that it may not use."""
    placed: ClassVar[bool] = False
    """Whether it must know where a folder is that ``..`` led to."""

    table: EntryTable

    def __init__(self) -> None:
        self.presenter: Presenter | None = None
        self.file_mode: int | None = None

    def check_root(self, root_fd: int, path: str, *, readonly: bool) -> None:
        """Find out whether the export can be served so; leaves nothing behind on the host.

        Args:
            root_fd: The root of the export.
            path: Its name, for messages.
            readonly: Whether nothing on the host will be changed.

        Raises:
            ConfigError: It cannot.
        """

    def open_table(self, root_fd: int, *, multidevs: str, budget: int) -> EntryTable:
        """Make the table of the export's entries, and know it from now on; the arguments are those of `EntryTable`."""
        self.table = EntryTable(root_fd, multidevs=multidevs, budget=budget)
        return self.table

    # --- owner and mode ---

    def chown(self, entry: Entry, uid: int, gid: int) -> None:
        """Give an object its owner.

        Args:
            entry: The object.
            uid: Numeric user of the guest; 0xFFFFFFFF leaves it alone.
            gid: Numeric group of the guest; the same.

        Raises:
            OSError: As fchownat(2), if the model does not overlook it.
        """
        fchownat(entry.fd, b"", uid, gid)

    def chmod(self, entry: Entry, mode: int) -> None:
        """Give an object the permission bits of `mode`, at most 07777.

        Raises:
            OSError: As chmod(2); ELOOP for a symbolic link, which has no mode of its own.
        """
        if entry.kind == stat.S_IFLNK:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        chmod_descriptor(entry.fd, mode)

    def keeps_set_ids(self, entry: Entry, uid: int) -> bool:
        """Whether a user of the guest may change an object without costing it its set-id bits, as root may."""
        del entry
        return uid == 0

    def clear_set_ids(self, entry: Entry) -> None:
        """Do what Linux does when a user without CAP_FSETID changes a file."""
        mode = self.table.stat(entry.fd).mode
        cleared = without_set_ids(mode)
        if cleared != mode:
            chmod_descriptor(entry.fd, stat.S_IMODE(cleared))

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
        """Give an object that was made a moment ago what the guest asked for.

        Args:
            entry: The object.
            now: What the host says of it, so that no further system call is needed.
            mode: Type and permission bits; a symbolic link has none of its own.
            uid: Its user; 0xFFFFFFFF: the one that it has.
            gid: Its group; the same.
            parent: The folder that it was made in.
            name: Its name there.
            device: What kind of device it is, as makedev(3) has it.

        Returns:
            Whether the object was changed in any way.
        """
        del parent, name, device
        changed = False
        if (uid not in {NONUNAME, now.uid}) or (gid not in {NONUNAME, now.gid}):
            self.chown(entry, uid, gid)
            changed = True
        if entry.kind != stat.S_IFLNK and (changed or (now.mode ^ mode) & MODE):
            now = self.table.stat(entry.fd) if changed else now
            if (now.mode ^ mode) & MODE:
                chmod_descriptor(entry.fd, mode & MODE)
                changed = True
        return changed

    # --- names ---

    def readlink(self, entry: Entry) -> bytes:
        """The target of a symbolic link.

        Raises:
            OSError: As readlink(2).
        """
        return os.readlink(b"", dir_fd=entry.fd)  # an empty path: the link that the descriptor itself stands for

    def link(self, entry: Entry, parent: Entry, name: bytes) -> None:
        """Give an object another name in a folder.

        Raises:
            OSError: As link(2).
        """
        link_descriptor(*self.table.both(entry, parent), name)

    def rename(self, old: Entry, old_name: bytes, new: Entry, new_name: bytes) -> None:
        """Rename what is in the folder `old`.

        Raises:
            OSError: As rename(2).
        """
        old_fd, new_fd = self.table.both(old, new)
        os.rename(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    def unlink(self, parent: Entry, name: bytes) -> None:
        """Remove a name that means no folder.

        Raises:
            OSError: As unlink(2).
        """
        os.unlink(name, dir_fd=parent.fd)

    def rmdir(self, parent: Entry, name: bytes) -> None:
        """Remove an empty folder.

        Raises:
            OSError: As rmdir(2).
        """
        os.rmdir(name, dir_fd=parent.fd)

    def discard(self, parent: Entry, name: bytes, *, folder: bool) -> None:
        """Remove what was made a moment ago and could not be finished.

        Raises:
            OSError: As unlink(2) or rmdir(2).
        """
        (os.rmdir if folder else os.unlink)(name, dir_fd=parent.fd)

    def beside(self, name: bytes) -> tuple[bytes, ...]:
        """Paths, relative to the folder of an object, of what the model keeps there because of its name.

        Args:
            name: The object's name in that folder.
        """
        del name
        return ()

    # --- extended attributes ---

    def xattr_name(self, name: bytes) -> bytes:
        """The host's name of an extended attribute of the guest.

        Raises:
            OSError: EOPNOTSUPP, the guest has no access to attributes of this kind.
        """
        if (name.startswith(USER) or (self.acls and name in ACL_NAMES)) and b"\0" not in name:
            return name
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def xattr_visible(self, name: bytes) -> bytes | None:
        """The guest's name of an extended attribute of the host; None if the guest does not see it."""
        return name if name.startswith(USER) or (self.acls and name in ACL_NAMES) else None

    def getxattr(self, entry: Entry, name: bytes) -> bytes:
        """The value of an extended attribute.

        Raises:
            OSError: As getxattr(2), and `xattr_name`.
        """
        return get_xattr(entry.fd, self.xattr_name(name))

    def listxattr(self, entry: Entry) -> bytes:
        """The names that the guest may ask for, each followed by a NUL.

        Raises:
            OSError: As listxattr(2).
        """
        found = (self.xattr_visible(name) for name in list_xattr(entry.fd).split(b"\0") if name)
        return b"".join(name + b"\0" for name in found if name is not None)

    def setxattr(self, entry: Entry, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute.

        Raises:
            OSError: As setxattr(2), and `xattr_name`.
        """
        set_xattr(entry.fd, self.xattr_name(name), value, flags)

    def removexattr(self, entry: Entry, name: bytes) -> None:
        """Remove an extended attribute.

        Raises:
            OSError: As removexattr(2), and `xattr_name`.
        """
        remove_xattr(entry.fd, self.xattr_name(name))
