"""Where ``security_model=mapped-file`` keeps its metadata: files in ``.virtfs_metadata`` beside the objects.

Each folder of the export has one such folder (mode 0700), with a file (0600) for each name; that of the export's root
itself is ``.virtfs_metadata_root`` in it. All functions take the descriptor of the folder that an object is in and the
object's name there; the name of the root is empty.

Nothing is followed and nothing but regular files is opened here, whatever the host may have put there. A file is
written under a temporary name and then renamed, so that whoever reads it, and whoever comes after a crash, finds the
old or the new content. Only one that has several links, since its object has, is changed in place, so that all links
keep saying the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import Final

from pyvirtfs.fsdev.security.metadata_format import MAX_NBYTES
from pyvirtfs.syscalls import chmod_descriptor

FOLDER: Final = b".virtfs_metadata"
ROOT: Final = b".virtfs_metadata_root"
HIDDEN: Final = frozenset({FOLDER, ROOT})

_PATH_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""There is no such metadata, or something of the host's that is no metadata."""


class BadMetadataError(ValueError):
    """There is something that is no metadata."""


def path_of(name: bytes) -> bytes:
    """The path of an object's metadata, relative to the folder that the object is in."""
    return FOLDER + b"/" + name if name else ROOT


def _temporary() -> bytes:
    """A name that no object has."""
    return FOLDER + b"." + secrets.token_hex(8).encode()


def _open_folder(fd: int, *, create: bool = False) -> int:
    """An ``O_PATH`` descriptor of a metadata folder."""
    try:
        return os.open(FOLDER, _PATH_FLAGS, dir_fd=fd)
    except FileNotFoundError:
        if not create:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(FOLDER, 0o700, dir_fd=fd)
    folder = os.open(FOLDER, _PATH_FLAGS, dir_fd=fd)
    try:
        chmod_descriptor(folder, 0o700)  # whatever the umask
    except OSError:
        os.close(folder)
        raise
    return folder


@contextlib.contextmanager
def _existing_folder(fd: int) -> Iterator[int | None]:
    """An ``O_PATH`` descriptor of a metadata folder while the block runs; None: there is none."""
    folder = None
    try:
        folder = _open_folder(fd)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
    try:
        yield folder
    finally:
        if folder is not None:
            os.close(folder)


def _is_link_of_many(fd: int, name: bytes) -> bool:
    """Whether a name means a regular file with several links."""
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink > 1


def read(fd: int, name: bytes) -> bytes:
    """The metadata of an object, at most one byte more than it may have.

    Raises:
        OSError: ENOENT if there is none; as openat(2) and read(2).
        BadMetadataError: There is something else.
    """
    folder = fd
    if name:
        try:
            folder = _open_folder(fd)
        except NotADirectoryError:
            raise BadMetadataError("the metadata folder is none") from None
    else:
        name = ROOT
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise BadMetadataError("its metadata is no regular file")
        file = os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=folder)
    finally:
        if folder is not fd:
            os.close(folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise BadMetadataError("its metadata is no regular file")
        return os.read(file, MAX_NBYTES + 1)
    finally:
        os.close(file)


def write(fd: int, name: bytes, data: bytes, *, shared: bool = False) -> None:
    """Give an object this metadata, whatever there was.

    Args:
        fd: The folder that the object is in.
        name: Its name there.
        data: The metadata.
        shared: The object has several links: if its metadata has, too, all of them are to say this.

    Raises:
        OSError: As openat(2), write(2), rename(2); the metadata is as it was.
    """
    folder = _open_folder(fd, create=True)
    try:
        target_fd, target = (folder, name) if name else (fd, ROOT)
        if shared and _is_link_of_many(target_fd, target):
            _write_in_place(target_fd, target, data)
            return
        temporary = _temporary()
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o600, dir_fd=folder)
        try:
            try:
                os.fchmod(file, 0o600)
                _write_all(file, data)
            finally:
                os.close(file)
            try:
                os.rename(temporary, target, src_dir_fd=folder, dst_dir_fd=target_fd)
            except IsADirectoryError:
                _make_room(target_fd, target, folder)
                os.rename(temporary, target, src_dir_fd=folder, dst_dir_fd=target_fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def _write_all(file: int, data: bytes) -> None:
    """One write, so that another process sees all of it or nothing."""
    if os.pwrite(file, data, 0) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_in_place(fd: int, name: bytes, data: bytes) -> None:
    file = os.open(name, os.O_WRONLY | _FILE_FLAGS, dir_fd=fd)
    try:
        _write_all(file, data)
        os.ftruncate(file, len(data))
    finally:
        os.close(file)


def remove(fd: int, name: bytes) -> None:
    """Remove the metadata of an object, if there is any.

    Raises:
        OSError: As unlink(2).
    """
    with _existing_folder(fd) as folder:
        if folder is not None:
            try:
                os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                _make_room(folder, name, folder)


def _make_room(fd: int, name: bytes, aside: int) -> None:
    """Remove a folder that stands for metadata; one that holds something gets another name in the folder `aside`."""
    try:
        os.rmdir(name, dir_fd=fd)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        os.rename(name, _temporary(), src_dir_fd=fd, dst_dir_fd=aside)


def link(fd: int, name: bytes, new_fd: int, new_name: bytes) -> None:
    """Give the metadata of an object another name, as the object got one; without any, the new name has none either.

    Raises:
        OSError: As link(2) and mkdir(2).
    """
    remove(new_fd, new_name)  # of an object that is gone
    with _existing_folder(fd) as folder:
        if folder is None or not _exists(folder, name):
            return
        new_folder = _open_folder(new_fd, create=True)
        try:
            os.link(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder, follow_symlinks=False)
        finally:
            os.close(new_folder)


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def prepare(fd: int, name: bytes, new_fd: int) -> None:
    """See to it that an object with metadata finds a metadata folder where it will be.

    Raises:
        OSError: As mkdir(2).
    """
    with _existing_folder(fd) as folder:
        if folder is not None and _exists(folder, name):
            os.close(_open_folder(new_fd, create=True))


def rename(fd: int, name: bytes, new_fd: int, new_name: bytes) -> None:
    """Move the metadata of an object that was renamed; what the new name had is gone.

    Raises:
        OSError: As rename(2).
    """
    with _existing_folder(fd) as folder, _existing_folder(new_fd) as new_folder:
        if folder is not None and new_folder is not None:
            try:
                os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
            else:
                return
    remove(new_fd, new_name)


# --- the metadata folder of a folder that is to be removed ---


def set_aside(fd: int, name: bytes) -> bytes | None:
    """Take the metadata folder out of a folder that holds nothing else, so that this can be removed.

    Args:
        fd: The folder that it is in.
        name: Its name there.

    Returns:
        Where the metadata folder is now, for `put_back` and `throw_away`; None: there was nothing to do.

    Raises:
        OSError: As open(2) and rename(2).
    """
    child = os.open(name, _LIST_FLAGS, dir_fd=fd)
    try:
        found = False
        with os.scandir(child) as entries:
            for entry in entries:
                if os.fsencode(entry.name) != FOLDER:
                    return None
                found = True
        if not found:
            return None
        folder = _open_folder(fd, create=True)
        try:
            temporary = _temporary()
            os.rename(FOLDER, temporary, src_dir_fd=child, dst_dir_fd=folder)
        finally:
            os.close(folder)
    finally:
        os.close(child)
    return temporary


def put_back(fd: int, name: bytes, aside: bytes) -> None:
    """The folder is still there: its metadata folder goes back; as far as that can be, for it belonged to nothing."""
    with contextlib.suppress(OSError), _existing_folder(fd) as folder:
        if folder is not None:
            child = os.open(name, _PATH_FLAGS, dir_fd=fd)  # no symbolic link, whoever has put one there meanwhile
            try:
                os.rename(aside, FOLDER, src_dir_fd=folder, dst_dir_fd=child)
            finally:
                os.close(child)


def throw_away(fd: int, aside: bytes) -> None:
    """Remove what `set_aside` has moved."""
    with contextlib.suppress(OSError), _existing_folder(fd) as folder:
        if folder is None:
            return
        if stat.S_ISDIR(os.stat(aside, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(aside, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(aside, dir_fd=folder)
