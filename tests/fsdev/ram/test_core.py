from __future__ import annotations

import errno
import os

from pyvirtfs.fsdev.driver import NONUNAME
from pyvirtfs.fsdev.ram import MemoryDriver
from pyvirtfs.testing.conformance.subject import Subject


def test_exports_do_not_look_alike() -> None:
    one, two = Subject(MemoryDriver()), Subject(MemoryDriver())
    assert one.root_qid.version != two.root_qid.version
    assert one.statfs(one.root).fsid != two.statfs(two.root).fsid


def test_who_has_no_number_makes_files_of_the_exports_owner() -> None:
    export = Subject(MemoryDriver(uid=5, gid=6))
    export.mkdir(export.root, b"folder", 0o755, NONUNAME, NONUNAME)
    assert export.attributes(export.find(b"folder"))[1:3] == (5, 6)


def test_names_run_out(export: Subject) -> None:
    nodes = [export.make_file(b"%d" % number) for number in range(19)]
    assert export.statfs(export.root).ffree == 0
    with export.unchanged():
        with export.refuses(errno.ENOSPC):
            export.make_file(b"one too many")
        with export.refuses(errno.ENOSPC):
            export.mkdir(export.root, b"folder", 0o755, 0, 0)
        with export.refuses(errno.ENOSPC):
            export.link(export.root, nodes[0], b"another name")
    export.unlinkat(export.root, b"0", folder=False)
    assert export.statfs(export.root).ffree == 0  # somebody holds it
    export.release(nodes[0])
    assert export.statfs(export.root).ffree == 1
    export.link(export.root, nodes[1], b"another name")
    export.unlinkat(export.root, b"1", folder=False)
    assert export.statfs(export.root).ffree == 1
    export.release(export.make_file(b"0"))


def test_unlinked_content_is_free_when_the_last_handle_is_given_back(export: Subject) -> None:
    node = export.make_file(b"file", b"x" * 100_000)
    taken = export.statfs(export.root).bfree
    file, _ = export.open(node, os.O_RDWR, 0)
    export.unlinkat(export.root, b"file", folder=False)
    export.release(node)
    assert export.statfs(export.root).bfree == taken
    assert export.get(file, 99_999, 10) == b"x"
    export.close_file(file)
    export.close_file(file)
    assert export.statfs(export.root).bfree == 256


def test_a_folder_that_was_replaced_is_free(export: Subject) -> None:
    export.give_back(export.make_folder(b"a"), export.make_folder(b"b"))
    export.renameat(export.root, b"a", export.root, b"b")
    assert export.statfs(export.root).ffree == 18
    assert export.attributes(export.root).nlink == 3
