"""Checks on open and create: flags, modes, what may be opened."""

from __future__ import annotations

import errno
import os
import stat

from pyvirtfs.fsdev.driver import QID_FILE, Qid
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.names import umask
from pyvirtfs.testing.conformance.subject import Subject, expect, require


@check("create")
def create_makes_a_file(export: Subject) -> None:
    """Create makes a regular file and opens it; the answer holds a new node, and the folder's node stays valid."""
    node, file, qid = export.create(export.root, b"file", os.O_RDWR, 0o644, 0, 0)
    expect(qid[0], QID_FILE, "the qid type of a file that was made")
    expect(export.qid(node), Qid(*qid), "the qid of the file that was made")
    attributes = export.attributes(node)
    expect(stat.S_IFMT(attributes.mode), stat.S_IFREG, "its type")
    expect((attributes.size, attributes.nlink), (0, 1), "size and nlink of a file that was made")
    expect(export.get(file, 0, 10), b"", "what a file that was made holds")
    expect(export.names_in(export.root), [b"file"], "the names in the folder, whose node stays valid")
    export.close_file(file)
    export.release(node)
    require(export.exists(b"file"), "the file is gone when its node is released")


@check("create")
def files_have_exact_modes(export: Subject) -> None:
    """Create gives a file exactly the mode that was asked for, whatever the umask, and opens it all the same."""
    with umask(0o777):
        for mode in (0o644, 0o777, 0o6755, 0o1666, 0o4711, 0o400, 0o000):
            node, file, _ = export.create(export.root, b"%o" % mode, os.O_RDWR, mode, 0, 0)
            expect(oct(export.mode(node)), oct(mode), "the mode of a file that was made")
            export.close_file(file)
            export.release(node)


@check("create")
def new_files_keep_set_ids(export: Subject) -> None:
    """A file that is new gets exactly its mode also from a user other than 0, and with O_TRUNC."""
    for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        uid, gid = export.attributes(export.root)[1:3]
        node, file, _ = export.create(export.root, b"%d" % flags, flags, 0o6755, uid or 1000, gid)
        expect(oct(export.mode(node)), oct(0o6755), "the mode of a file that a user made")
        export.close_file(file)


@check("create", "owners")
def files_have_owners(export: Subject) -> None:
    """What is made belongs to the user of the fid and the group of the request; its set-id bits stay."""
    node = export.make_file(b"file", mode=0o6755, uid=1000, gid=2000)
    attributes = export.attributes(node)
    expect(attributes[1:3], (1000, 2000), "owner and group of a file")
    expect(oct(stat.S_IMODE(attributes.mode)), oct(0o6755), "the mode of a file with another owner")


@check("create", "write")
def create_opens_what_is_there(export: Subject) -> None:
    """Without O_EXCL an existing regular file is opened: mode and content stay."""
    first = export.make_file(b"file", b"content", mode=0o600)
    node, file, qid = export.create(export.root, b"file", os.O_RDWR, 0o644, 1000, 1000)
    expect(qid[2], export.qid(first).path, "the path of the file that was there")
    expect(oct(export.mode(node)), oct(0o600), "the mode of the file that was there")
    expect(export.get(file, 0, 10), b"content", "what the file holds that was there")
    export.put(file, 0, b"C")
    export.close_file(file)
    expect(export.content(first), b"Content", "what the file holds after a write through the new open file")


@check("create")
def exclusive_create(export: Subject) -> None:
    """With O_EXCL a name that is taken is EEXIST, whatever has it."""
    export.release(export.make_file(b"file"))
    with export.unchanged(), export.refuses(errno.EEXIST):
        export.create(export.root, b"file", os.O_RDWR | os.O_EXCL, 0o644, 0, 0)


@check("create", "mkdir")
def create_over_a_folder(export: Subject) -> None:
    """Create opens regular files only: EISDIR for a folder; EEXIST with O_EXCL."""
    export.release(export.make_folder(b"folder"))
    with export.unchanged():
        with export.refuses(errno.EISDIR):
            export.create(export.root, b"folder", os.O_RDWR, 0o644, 0, 0)
        with export.refuses(errno.EEXIST):
            export.create(export.root, b"folder", os.O_RDWR | os.O_EXCL, 0o644, 0, 0)


@check("create", "symlink")
def create_over_a_symlink(export: Subject) -> None:
    """Create follows no symbolic link: ELOOP; EEXIST with O_EXCL."""
    export.release(export.make_file(b"file"))
    for name, target in ((b"link", b"file"), (b"dangling", b"missing")):
        export.release(export.make_link(name, target))
        with export.unchanged():
            with export.refuses(errno.ELOOP, errno.EEXIST):
                export.create(export.root, name, os.O_RDWR, 0o644, 0, 0)
            with export.refuses(errno.EEXIST):
                export.create(export.root, name, os.O_RDWR | os.O_EXCL, 0o644, 0, 0)


@check("create", "mknod")
def create_over_a_fifo(export: Subject) -> None:
    """Create opens regular files only, and does not wait for a fifo's other end: ENXIO."""
    export.mknod(export.root, b"fifo", stat.S_IFIFO | 0o666, 0, 0, 0, 0)
    with export.unchanged(), export.refuses(errno.ENXIO, errno.EEXIST):
        export.create(export.root, b"fifo", os.O_WRONLY, 0o644, 0, 0)


@check("create")
def create_below_a_file(export: Subject) -> None:
    """Create below what is no folder is ENOTDIR."""
    node = export.make_file(b"file")
    with export.unchanged(), export.refuses(errno.ENOTDIR):
        export.create(node, b"below", os.O_RDWR, 0o644, 0, 0)


@check("create", "write")
def truncating_flags(export: Subject) -> None:
    """O_TRUNC empties a file, at open and at create; its size is told as it is, then and after a write."""
    node = export.make_file(b"file", b"content")
    expect(export.attributes(node).size, 7, "the size before")
    with export.opened(node, os.O_RDWR | os.O_TRUNC) as file:
        expect(export.get(file, 0, 10), b"", "what the file holds after open with O_TRUNC")
        expect(export.attributes(node).size, 0, "the size after open with O_TRUNC")
        export.put(file, 0, b"again")
        expect(export.attributes(node).size, 5, "the size after a write to a file that was opened with O_TRUNC")
    expect(export.attributes(export.find(b"file")).size, 5, "the size after the file was closed")
    _, file, _ = export.create(export.root, b"file", os.O_WRONLY | os.O_TRUNC, 0o644, 0, 0)
    export.close_file(file)
    expect(export.attributes(node).size, 0, "the size after create with O_TRUNC")


@check("create", "write")
def appending(export: Subject) -> None:
    """Through a file that was opened with O_APPEND writes go to the end, whatever their offset (as Linux does it)."""
    node = export.make_file(b"file", b"one")
    with export.opened(node, os.O_WRONLY | os.O_APPEND) as file, export.opened(node, os.O_WRONLY) as other:
        export.put(file, 0, b"two")
        export.put(other, 6, b"three")
        export.put(file, 1, b"four")
    expect(export.content(node), b"onetwothreefour", "what the file holds")
    _, file, _ = export.create(export.root, b"file", os.O_WRONLY | os.O_APPEND, 0o644, 0, 0)
    export.put(file, 0, b"five")
    export.close_file(file)
    expect(export.content(node), b"onetwothreefourfive", "what the file holds")


@check("create", "write")
def access_modes(export: Subject) -> None:
    """A file that is open for reading only cannot be written to, nor the reverse: EBADF."""
    node = export.make_file(b"file", b"content")
    with export.unchanged():
        with export.opened(node, os.O_RDONLY) as file, export.refuses(errno.EBADF):
            export.write(file, 0, ViewBuffers.of(b"x"))
        with export.opened(node, os.O_WRONLY) as file, export.refuses(errno.EBADF):
            export.read(file, 0, ViewBuffers.of(bytearray(1)))


@check("create")
def open_tells_the_qid(export: Subject) -> None:
    """Open tells the qid that getattr tells."""
    node = export.make_file(b"file")
    for what in (node, export.root):
        file, qid = export.open(what, os.O_RDONLY, 0)
        expect(Qid(*qid), export.qid(what), "the qid that open told")
        export.close_file(file)


@check("create")
def a_file_is_no_folder(export: Subject) -> None:
    """O_DIRECTORY with a regular file is ENOTDIR."""
    node = export.make_file(b"file")
    with export.refuses(errno.ENOTDIR):
        export.open(node, os.O_RDONLY | os.O_DIRECTORY, 0)


@check("create", "write")
def modes_do_not_bind_who_has_it_open(export: Subject) -> None:
    """A file that was made without any permission can be written and read through the open file that made it."""
    node, file, _ = export.create(export.root, b"file", os.O_RDWR, 0, 0, 0)
    export.put(file, 0, b"content")
    expect(export.get(file, 0, 10), b"content", "what the file holds")
    export.close_file(file)
    expect(export.attributes(node).size, 7, "its size")


@check("create", "write")
def syncing(export: Subject) -> None:
    """Fsync works on files and folders, with datasync and without; what was written stays, and when it was."""
    node = export.make_file(b"file")
    with export.opened(node, os.O_RDWR) as file:
        export.put(file, 0, b"content")
        before = export.attributes(node)
        export.fsync(file, datasync=True)
        export.fsync(file, datasync=False)
        expect(export.get(file, 0, 10), b"content", "what the file holds")
        after = export.attributes(node)
        for name in ("size", "mtime_sec", "mtime_nsec", "ctime_sec", "ctime_nsec"):
            expect(getattr(after, name), getattr(before, name), f"{name} after fsync")
    with export.opened(export.root) as folder:
        export.fsync(folder, datasync=False)
