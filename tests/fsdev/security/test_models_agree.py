"""The same random requests to an export of each mapped model: a guest cannot tell which one it has."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver

NAMES = st.sampled_from([b"a", b"b", b"d", b"e"])
FOLDERS = st.sampled_from([(), (b"d",), (b"e",), (b"d", b"e")])
KINDS = st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK])
IDS = st.integers(0, 9)
HELD = st.integers(0, 5)

TOP = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def has_attributes() -> bool:
    """Whether the file system has extended attributes for users; tmpfs since Linux 6.6."""
    with tempfile.TemporaryFile(dir=TOP) as file:
        try:
            os.setxattr(file.fileno(), "user.x", b"")
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(not has_attributes(), reason="no extended attributes")


class Export:
    """An export, and what a guest holds of it."""

    def __init__(self, model: str) -> None:
        self.folder = tempfile.mkdtemp(dir=TOP)
        self.driver = LocalDriver(self.folder, model)
        self.root, _ = self.driver.attach(b"", 0)
        self.held: list[Node] = []

    def walk(self, names: tuple[bytes, ...]) -> Node:
        found = self.driver.walk(self.root, list(names)).node
        if found is None:
            raise FileNotFoundError
        return found

    def see(self, node: Node) -> tuple[object, ...]:
        qid, seen = self.driver.getattr(node)
        target = self.driver.readlink(node) if qid.type == 2 else None
        links = 0 if qid.type == 0x80 else seen.nlink
        size = seen.size * (qid.type != 0x80)
        folder, name = self.driver.place(node)
        if folder is not None:
            self.driver.release(folder)
        return qid.type, links, seen.uid, seen.gid, seen.mode, seen.rdev_major, size, target, folder is not None, name

    def tree(self, names: tuple[bytes, ...] = ()) -> dict[tuple[bytes, ...], object]:
        """Everything that can be found."""
        node = self.walk(names)
        found: dict[tuple[bytes, ...], object] = {names: self.see(node)}
        if found[names][0] == 0x80:  # type: ignore[index]
            file, _ = self.driver.open(node, os.O_RDONLY, 0)
            cookie = 0
            while entries := self.driver.readdir(file, cookie):
                cookie = entries[-1][1]
                for *_, name in entries:
                    if name not in {b".", b".."}:
                        found.update(self.tree((*names, name)))
            self.driver.close_file(file)
        self.driver.release(node)
        return found


class Agreement(RuleBasedStateMachine):
    """Requests to two exports at once."""

    def __init__(self) -> None:
        super().__init__()
        self.exports = [Export("mapped-file"), Export("mapped-xattr")]

    @initialize()
    def start(self) -> None:
        """Something to work with, and held: what chance alone makes seldom meets."""
        self.mkdir((), b"d", 1)
        for name, kind in ((b"a", stat.S_IFREG), (b"b", stat.S_IFIFO)):
            self.mknod((), name, kind, 0o4755, 2, 3)
            self.hold((), name)

    def both(self, method: str, *paths: tuple[bytes, ...] | bytes, **keywords: object) -> None:
        """Call a method of both drivers, with nodes in the places of paths: with the same result."""
        results: list[object] = []
        for export in self.exports:
            nodes: list[Node] = []
            try:
                arguments = [path if isinstance(path, bytes) else export.walk(path) for path in paths]
                nodes = [node for node in arguments if isinstance(node, Node)]
                getattr(export.driver, method)(*arguments, **keywords)
                results.append(None)
            except OSError as error:
                results.append(error.errno)
            for node in nodes:
                export.driver.release(node)
        assert results[0] == results[1], method

    @rule(folder=FOLDERS, name=NAMES, kind=KINDS, mode=st.integers(0, 0o7777), uid=IDS, gid=IDS)
    def mknod(self, folder: tuple[bytes, ...], name: bytes, kind: int, mode: int, uid: int, gid: int) -> None:
        self.both("mknod", folder, name, mode=kind | mode, major=8, minor=1, uid=uid, gid=gid)

    @rule(folder=FOLDERS, name=NAMES, uid=IDS)
    def mkdir(self, folder: tuple[bytes, ...], name: bytes, uid: int) -> None:
        self.both("mkdir", folder, name, mode=0o2755, uid=uid, gid=uid)

    @rule(folder=FOLDERS, name=NAMES, uid=IDS)
    def symlink(self, folder: tuple[bytes, ...], name: bytes, uid: int) -> None:
        self.both("symlink", folder, name, target=b"target", uid=uid, gid=uid)

    @rule(folder=FOLDERS, name=NAMES, new=FOLDERS, new_name=NAMES)
    def link(self, folder: tuple[bytes, ...], name: bytes, new: tuple[bytes, ...], new_name: bytes) -> None:
        self.both("link", new, (*folder, name), new_name)

    @rule(folder=FOLDERS, name=NAMES, new=FOLDERS, new_name=NAMES)
    def rename(self, folder: tuple[bytes, ...], name: bytes, new: tuple[bytes, ...], new_name: bytes) -> None:
        self.both("renameat", folder, name, new, new_name)

    @rule(folder=FOLDERS, name=NAMES, directory=st.booleans())
    def unlink(self, folder: tuple[bytes, ...], name: bytes, directory: bool) -> None:
        self.both("unlinkat", folder, name, folder=directory)

    @rule(folder=FOLDERS, name=NAMES, uid=IDS, mode=st.none() | st.integers(0, 0o7777))
    def change(self, folder: tuple[bytes, ...], name: bytes, uid: int, mode: int | None) -> None:
        self.both("setattr", (*folder, name), changes=SetAttributes(mode=mode, uid=uid), uid=uid)

    @rule(folder=FOLDERS, name=NAMES)
    def hold(self, folder: tuple[bytes, ...], name: bytes) -> None:
        for export in self.exports:
            with contextlib.suppress(OSError):
                export.held.append(export.walk((*folder, name)))

    def both_held(self, index: int, method: str, *arguments: object, to: tuple[bytes, ...] | None = None) -> None:
        """As `both`, of a node that is held; with a folder behind it, if there is one."""
        results: list[object] = []
        for export in self.exports:
            if not export.held:
                return
            folders: list[Node] = []
            try:
                folders = [] if to is None else [export.walk(to)]
                getattr(export.driver, method)(export.held[index % len(export.held)], *folders, *arguments)
                results.append(None)
            except OSError as error:
                results.append(error.errno)
            for folder in folders:
                export.driver.release(folder)
        assert results[0] == results[1], method

    @rule(index=HELD, uid=IDS, mode=st.none() | st.integers(0, 0o7777))
    def change_held(self, index: int, uid: int, mode: int | None) -> None:
        self.both_held(index, "setattr", SetAttributes(mode=mode, uid=uid), uid)

    @rule(index=HELD, folder=FOLDERS, name=NAMES)
    def rename_held(self, index: int, folder: tuple[bytes, ...], name: bytes) -> None:
        self.both_held(index, "rename", name, to=folder)

    @rule(index=HELD)
    def remove_held(self, index: int) -> None:
        self.both_held(index, "remove")

    @rule(index=HELD)
    def let_go(self, index: int) -> None:
        for export in self.exports:
            if export.held:
                export.driver.release(export.held.pop(index % len(export.held)))

    @invariant()
    def agree(self) -> None:
        one, other = self.exports
        assert one.tree() == other.tree()
        assert [one.see(node) for node in one.held] == [other.see(node) for node in other.held]

    def teardown(self) -> None:
        for export in self.exports:
            export.driver.close()
            shutil.rmtree(export.folder)


Agreement.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestAgreement = Agreement.TestCase
