"""A mounted export: users, path resolution, memory for payloads.

`Mount` is what ``mount -t 9p -o trans=virtio TAG`` makes; the files in it are `GuestPath` objects (`Mount.root`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Self

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.channel import Channel
from pyvirtfs.guest.dma import DmaBuffer
from pyvirtfs.guest.session import Session
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.client import DEFAULT_MSIZE
from pyvirtfs.p9.results import Attributes

if TYPE_CHECKING:
    from pyvirtfs.guest.files import GuestPath
    from pyvirtfs.guest.paths import Segment

MAX_LINKS = 40
"""Symbolic links in one path, as on Linux."""


MAX_STRING = (1 << 16) - 1
"""Bytes of a string of 9P."""


_WALK_NBYTES = 17 + 2 * c.MAX_WALK_NAMES
"""Bytes of a Twalk without its names."""


class LookedUp(NamedTuple):
    """How far a path exists."""

    fid: int
    """A new fid for what the names that exist lead to: the whole path's if there is no error."""
    names: tuple[bytes, ...]
    """How that is reached from the root without symbolic links and ``..``."""
    kind: int
    """What that is: the type of its qid, QT_*."""
    missing: tuple[bytes, ...]
    """The names from there on that could not be walked; empty if there is no error."""
    error: OSError | None
    """Why they could not."""


class Mount:
    """An export, as one user of the guest sees it.

    Made by `mount` and by `Mount.as_user`.

    Args:
        session: Talks to the server.
        uid: The numeric user for the attach; None for the mount's default, which names nobody.
        gid: The group of what the user creates, except in folders with the setgid bit.
        umask: Permission bits that are taken away from what the user creates.
        parent: The mount that this is another user's view of.
    """

    def __init__(
        self,
        session: Session,
        *,
        uid: int | None = None,
        gid: int = 0,
        umask: int = 0o022,
        parent: Mount | None = None,
    ) -> None:
        self.session = session
        self.uid = uid
        self.gid = gid
        self.umask = umask
        self._parent = parent
        self.users: list[Mount] = []
        """Other users' views that were made from this one."""
        if uid is None:
            self.root_fid = session.attach(uname=b"nobody")
        else:
            self.root_fid = session.attach(uid=uid)
        attributes = session.run(session.client.getattr(self.root_fid, c.GETATTR_BASIC | c.GETATTR_GEN))
        if not stat.S_ISDIR(attributes.mode):
            raise NotADirectoryError(errno.ENOTDIR, "the root of the export is not a folder")

    @property
    def tag(self) -> str:
        """The mount tag of the device."""
        return os.fsdecode(self.session.channel.tag)

    @property
    def root(self) -> GuestPath:
        """The root folder of the export."""
        return self.path()

    def path(self, *segments: Segment) -> GuestPath:
        """A path below the root, from strings or bytes with slashes between names."""
        from pyvirtfs.guest.files import GuestPath  # noqa: PLC0415 (paths know mounts, mounts make paths)

        return GuestPath(self, *segments)

    def as_user(self, uid: int, *, gid: int | None = None, umask: int | None = None) -> Mount:
        """The same export as another user sees it: a further attach. Raises OSError."""
        gid, umask = uid if gid is None else gid, self.umask if umask is None else umask
        user = Mount(self.session, uid=uid, gid=gid, umask=umask, parent=self)
        self.users.append(user)
        return user

    def umount(self) -> None:
        """Give up the roots of this user and of those made from it. The channel stays up."""
        while self.users:
            self.users[-1].umount()
        if self.root_fid != c.NOFID:
            fid, self.root_fid = self.root_fid, c.NOFID
            if self._parent is None:
                self.session.channel.in_use = False
            else:
                self._parent.users.remove(self)
            self.session.clunk(fid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(DeviceError):  # the device may be what failed
            self.umount()

    # --- from names to fids ---

    @contextlib.contextmanager
    def fid(self, names: Sequence[bytes], *, follow: bool = True, directory: bool = False) -> Iterator[int]:
        """A fid for a path, clunked at the end. Raises what `resolve` raises."""
        fid = self.resolve(names, follow=follow, directory=directory)
        try:
            yield fid
        finally:
            self.session.clunk(fid)

    def resolve(self, names: Sequence[bytes], *, follow: bool = True, directory: bool = False) -> int:
        """A new fid for a path from the root.

        Args:
            names: The names on the way.
            follow: Whether a symbolic link at the very end is followed.
            directory: Whether it must be a folder.

        Raises:
            OSError: ELOOP after 40 links, ENOTDIR if it must be a folder and is none, or what the server answers.
            ValueError: A name holds a NUL.
        """
        found = self.look_up(names, follow=follow)
        if found.error is None and (found.kind & c.QTDIR or not directory):
            return found.fid
        self.session.clunk(found.fid)
        if found.error is None:
            refuse(errno.ENOTDIR)
        raise found.error

    def look_up(self, names: Sequence[bytes], *, follow: bool = True) -> LookedUp:
        """Walk a path from the root as far as it exists. 9P servers follow no symbolic link, so the client does.

        Args:
            names: The names on the way.
            follow: Whether a symbolic link at the very end is followed.

        Raises:
            OSError: ENAMETOOLONG for a name that fits in no message; what the server answers when a link is read.
            ValueError: A name holds a NUL.
        """
        check_names(names)
        session, pending = self.session, list(names)
        at, kind, links = self.root_fid, c.QTDIR, 0
        real: list[bytes] = []
        error: OSError | None = None
        room = session.msize - _WALK_NBYTES
        try:
            while pending:
                step = pending[: c.MAX_WALK_NAMES]
                while len(step) > 1 and sum(map(len, step)) > room:
                    step.pop()
                try:
                    fid, qids = session.try_walk(at, step)
                except OSError as refused:
                    error = refused
                    break
                link = next(
                    (i for i, qid in enumerate(qids) if qid.is_symlink and (follow or i + 1 < len(pending))), None
                )
                if link is None:
                    if len(qids) < len(step):  # the next turn begins with the missing name, and learns what is wrong
                        fid = session.walk(at, step[: len(qids)])
                    self._leave(at)
                    at, kind, pending = fid, qids[-1].type, pending[len(qids) :]
                    _descend(real, step[: len(qids)])
                    continue
                if len(qids) == len(step):
                    session.clunk(fid)
                links += 1
                if links > MAX_LINKS:
                    error = OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    break
                target, folder = self._read_link_on_the_way(at, step[:link], step[link])
                self._leave(at)
                at, kind, pending = folder, c.QTDIR, [*split_names(target), *pending[link + 1 :]]
                _descend(real, step[:link])
                if target.startswith(b"/"):
                    real.clear()
            fid = session.walk(at) if at == self.root_fid else at
        except BaseException:
            self._leave(at)
            raise
        return LookedUp(fid, tuple(real), kind, tuple(pending), error)

    def real_names(self, names: Sequence[bytes], *, strict: bool) -> tuple[bytes, ...]:
        """The names of a path without symbolic links and ``..``.

        Args:
            names: The names on the way.
            strict: Whether all of it must exist; otherwise what does not is appended as it is.

        Raises:
            OSError: ELOOP after 40 links; if `strict`, what `resolve` raises.
            ValueError: A name holds a NUL.
        """
        found = self.look_up(names)
        self.session.clunk(found.fid)
        if found.error is not None and (strict or found.error.errno == errno.ELOOP):
            raise found.error
        real = list(found.names)
        _descend(real, found.missing)
        return tuple(real)

    def _leave(self, fid: int) -> None:
        if fid != self.root_fid:
            self.session.clunk(fid)

    def _read_link_on_the_way(self, at: int, names: Sequence[bytes], link: bytes) -> tuple[bytes, int]:
        """The target of a link, and a fid for the folder from which it counts."""
        session = self.session
        folder = session.walk(at, names)
        try:
            fid = session.walk(folder, [link])
            try:
                target = session.run(session.client.readlink(fid))
            finally:
                session.clunk(fid)
        except BaseException:
            session.clunk(folder)
            raise
        if target.startswith(b"/"):
            session.clunk(folder)
            return target, self.root_fid
        return target, folder

    # --- what operations on files have in common ---

    def getattr(self, fid: int) -> Attributes:
        """All attributes of a fid's object. Raises OSError."""
        return self.session.run(self.session.client.getattr(fid, c.GETATTR_ALL))

    def creation_gid(self, folder: int) -> tuple[int, bool]:
        """The group for what is created in a folder, and whether the folder passes its group on."""
        mask = c.GETATTR_MODE | c.GETATTR_GID
        attributes = self.session.run(self.session.client.getattr(folder, mask))
        if attributes.mode & stat.S_ISGID:
            return attributes.gid, True
        return self.gid, False

    def allocate(self, nbytes: int) -> DmaBuffer:
        """Guest RAM for payloads, laid out as the channel's shapes say. MemoryError if there is none."""
        channel = self.session.channel
        shapes, dma = channel.shapes, channel.driver.dma
        if shapes.scattered:
            return dma.allocate_scattered(nbytes, offset=shapes.first_page_offset)
        return dma.allocate(nbytes, offset=shapes.first_page_offset)

    def free(self, buffer: DmaBuffer) -> None:
        """Give payload memory back."""
        self.session.channel.driver.dma.free(buffer)

    def is_lent(self, nbytes: int) -> bool:
        """Whether a payload of that size is lent to the device rather than copied into the message."""
        limit = self.session.channel.shapes.zero_copy_above
        return limit is not None and nbytes > limit


def mount(
    channel: Channel,
    *,
    msize: int = DEFAULT_MSIZE,
    uid: int | None = None,
    gid: int = 0,
    umask: int = 0o022,
) -> Mount:
    """Mount the export behind a channel: Tversion, Tattach, Tgetattr.

    Args:
        channel: A device that was brought up.
        msize: The largest message that the client wants.
        uid: See `Mount`.
        gid: See `Mount`.
        umask: See `Mount`.

    Raises:
        OSError: EBUSY if it is mounted already, EREMOTEIO if the server does not speak 9P2000.L, or what it answers.
    """
    if channel.in_use:
        refuse(errno.EBUSY)
    mounted = Mount(Session(channel, msize=msize), uid=uid, gid=gid, umask=umask)
    channel.in_use = True
    return mounted


def check_names(names: Iterable[bytes]) -> None:
    """Refuse what is no name, before it is sent.

    Raises:
        OSError: ENAMETOOLONG, if it is longer than strings of 9P may be (intro(5)).
        ValueError: A name holds a NUL.
    """
    for name in names:
        if b"\0" in name:
            raise ValueError("embedded null byte")
        if len(name) > MAX_STRING:
            refuse(errno.ENAMETOOLONG)


def refuse(number: int) -> NoReturn:
    """Raise the OSError of an errno."""
    raise OSError(number, os.strerror(number))


def _descend(real: list[bytes], names: Iterable[bytes]) -> None:
    """Go on from a path by names that are no symbolic links; the root's parent is the root."""
    for name in names:
        if name != b"..":
            real.append(name)
        elif real:
            real.pop()


def split_names(path: bytes) -> list[bytes]:
    """The names of a path, without empty ones and ``.``."""
    return [name for name in path.split(b"/") if name not in {b"", b"."}]
