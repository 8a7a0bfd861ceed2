from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev import local_names
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["unmapped", "mapped-xattr", "mapped-file"], indirect=True),
]


@pytest.fixture(autouse=True)
def tree(root: Path) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"hello")
    os.symlink("a", root / "link")
    os.symlink("/proc/self/root", root / "magic")
    (root / "\udcff\udcfe").touch()


def test_walk_qids(driver: LocalDriver, at: At, root: Path) -> None:
    walk = driver.walk(at(b""), [b"a", b"b", b"c"])
    assert [qid.path for qid in walk.qids] == [
        (root / "a").stat().st_ino, (root / "a/b").stat().st_ino, (root / "a/b/c").stat().st_ino,
    ]  # fmt: skip
    assert [qid.type for qid in walk.qids] == [0x80] * 3
    assert walk.node is not None
    driver.release(walk.node)
    assert driver.walk(at(b""), [b"link"]).qids[0].type == 0x02
    driver.release(at(b"link"))


def test_walk_of_nothing_is_another_handle(driver: LocalDriver, at: At) -> None:
    node = at(b"a/file")
    walk = driver.walk(node, [])
    assert walk.qids == ()
    assert walk.node is not None
    driver.release(walk.node)
    assert driver.getattr(node)[1].size == 5


@pytest.mark.parametrize(
    ("names", "found", "code"),
    [
        ([b"none"], 0, errno.ENOENT),
        ([b"a", b"none"], 1, 0),
        ([b"a", b"b", b"none", b"c"], 2, 0),
        ([b"a", b"file", b"x"], 2, 0),
        ([b"a", b"file", b".."], 2, 0),
        ([b"a", b"file", b"."], 2, 0),
        ([b"link", b"file"], 1, 0),
        ([b"magic", b"etc"], 1, 0),
        ([b"x" * 256], 0, errno.ENAMETOOLONG),
        ([b"x" * 65535], 0, errno.ENAMETOOLONG),
    ],
)
def test_partial_walks(driver: LocalDriver, at: At, names: list[bytes], found: int, code: int) -> None:
    if code:
        with pytest.raises(OSError, match="Errno") as caught:
            driver.walk(at(b""), names)
        assert caught.value.errno == code
        return
    walk = driver.walk(at(b""), names)
    assert len(walk.qids) == found
    assert walk.node is None


@pytest.mark.parametrize("start", [b"", b"a", b"a/b/c"])
def test_dot_dot_stops_at_the_root(driver: LocalDriver, at: At, start: bytes) -> None:  # H002
    top = driver.getattr(at(b""))[0]
    walk = driver.walk(at(start), [b".."] * 16)
    assert walk.qids[-1] == top
    assert walk.node is not None
    assert driver.getattr(walk.node)[0] == top
    driver.release(walk.node)


def test_dot_dot_at_a_renamed_root(driver: LocalDriver, at: At, place: Path) -> None:  # H002
    node = at(b"a")
    (place / "export").rename(place / "moved")
    walk = driver.walk(node, [b"..", b"..", b"a"])
    assert walk.qids[0] == walk.qids[1]
    assert walk.node is node
    driver.release(node)
    (place / "moved").rename(place / "export")


def test_a_folder_moved_out_of_the_export_has_no_way_up(driver: LocalDriver, at: At, place: Path) -> None:
    inner = at(b"a/b/c")
    (place / "elsewhere").mkdir()
    (place / "export/a/b").rename(place / "elsewhere/b")
    with pytest.raises(OSError, match="No such file") as caught:
        driver.walk(inner, [b".."])
    assert caught.value.errno == errno.ENOENT
    assert driver.getattr(inner)[0].type == 0x80


def test_names_that_are_not_utf8(driver: LocalDriver, at: At, root: Path) -> None:
    assert driver.getattr(at(b"\xff\xfe"))[1].ino == (root / "\udcff\udcfe").stat().st_ino
    driver.renameat(at(b""), b"\xff\xfe", at(b"a"), b"\x80")
    assert (root / "a" / "\udc80").exists()


def test_deep_tree_of_long_names(driver: LocalDriver) -> None:  # H007, H008
    name = b"n" * 255
    here, _ = driver.attach(b"", 0)
    trail = [here]
    for _ in range(300):
        driver.mkdir(here, name, 0o755, 0, 0)
        found = driver.walk(here, [name]).node
        assert found is not None
        here = found
        trail.append(here)
    node, file, _ = driver.create(here, b"bottom", os.O_RDWR, 0o600, 0, 0)
    driver.close_file(file)
    assert driver.getattr(node)[1].mode == 0o100600
    up = driver.walk(here, [b".."] * 16)
    assert up.node is trail[-17]
    driver.release(up.node)
    driver.remove(node)
    driver.release(node)
    while len(trail) > 1:
        driver.release(trail.pop())
        driver.unlinkat(trail[-1], name, folder=True)
    driver.release(trail.pop())


def test_readlink(driver: LocalDriver, at: At, root: Path, longest_target: bytes) -> None:
    assert driver.readlink(at(b"link")) == b"a"
    assert driver.readlink(at(b"magic")) == b"/proc/self/root"  # H027
    for path in (b"a", b"a/file"):
        with pytest.raises(OSError, match="Invalid") as caught:
            driver.readlink(at(path))
        assert caught.value.errno == errno.EINVAL
    os.symlink(longest_target, os.fsencode(root) + b"/long")
    assert driver.readlink(at(b"long")) == longest_target


def test_link(driver: LocalDriver, at: At, root: Path) -> None:
    node = at(b"a/file")
    driver.link(at(b""), node, b"hard")
    assert (root / "hard").stat().st_ino == (root / "a/file").stat().st_ino
    driver.link(at(b"a"), at(b"link"), b"soft")
    assert os.readlink(root / "a/soft") == "a"
    for target, name, code in ((b"a", b"x", errno.EPERM), (b"a/file", b"hard", errno.EEXIST)):
        with pytest.raises(OSError, match="Errno") as caught:
            driver.link(at(b""), at(target), name)
        assert caught.value.errno == code
    driver.unlinkat(at(b"a"), b"file", folder=False)
    driver.unlinkat(at(b""), b"hard", folder=False)
    with pytest.raises(OSError, match="No such"):
        driver.link(at(b""), node, b"back")


def test_nodes_follow_renames_through_the_device(driver: LocalDriver, at: At, root: Path) -> None:  # H051
    node = at(b"a/file")
    driver.renameat(at(b"a"), b"file", at(b"a/b"), b"new")
    assert node.name == b"new"
    driver.renameat(at(b""), b"a", at(b""), b"z")  # what is above it
    driver.rename(node, at(b""), b"newer")
    assert (root / "newer").read_bytes() == b"hello"
    driver.remove(node)
    assert not (root / "newer").exists()
    assert driver.getattr(node)[1].nlink == 0


def test_rename_over_leaves_the_other_object_without_a_place(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "other").write_bytes(b"other")
    winner, loser = at(b"a/file"), at(b"other")
    driver.renameat(at(b"a"), b"file", at(b""), b"other")
    assert driver.getattr(loser)[1].nlink == 0
    for operation in (driver.remove, lambda node: driver.rename(node, at(b""), b"x")):
        with pytest.raises(OSError, match="Stale") as caught:
            operation(loser)
        assert caught.value.errno == errno.ESTALE
    driver.remove(winner)
    assert not (root / "other").exists()


def test_rename_between_links_of_one_object_does_nothing(driver: LocalDriver, at: At, root: Path) -> None:
    os.link(root / "a/file", root / "second")
    first, second = at(b"a/file"), at(b"second")
    driver.rename(first, at(b""), b"second")
    assert (first.name, second.name) == (b"file", b"second")
    driver.remove(first)
    driver.remove(second)
    assert not (root / "a/file").exists()
    assert not (root / "second").exists()


def test_two_links_are_two_nodes(driver: LocalDriver, at: At, root: Path) -> None:
    os.link(root / "a/file", root / "second")
    first, second = at(b"a/file"), at(b"second")
    assert driver.getattr(first)[0] == driver.getattr(second)[0]
    driver.renameat(at(b""), b"second", at(b""), b"third")
    driver.remove(first)
    assert (root / "third").exists()
    driver.remove(second)
    assert not (root / "third").exists()


@pytest.mark.parametrize("what", ["gone", "replaced", "link"])
def test_what_the_host_moved_is_stale(driver: LocalDriver, at: At, root: Path, what: str) -> None:
    node = at(b"a/file")
    (root / "a/file").rename(root / "kept")
    if what == "replaced":
        (root / "a/file").write_bytes(b"new")
    if what == "link":
        os.symlink("../kept", root / "a/file")
    for operation in (driver.remove, lambda stale: driver.rename(stale, at(b""), b"x")):
        with pytest.raises(OSError, match="Stale") as caught:
            operation(node)
        assert caught.value.errno == errno.ESTALE
    assert (root / "kept").read_bytes() == b"hello"
    assert os.path.lexists(root / "a/file") == (what != "gone")


def test_the_root_stays(driver: LocalDriver, at: At) -> None:
    for operation in (driver.remove, lambda node: driver.rename(node, at(b"a"), b"x")):
        with pytest.raises(OSError, match="busy") as caught:
            operation(at(b""))
        assert caught.value.errno == errno.EBUSY


def test_a_folder_reached_from_below_can_be_renamed_and_removed(driver: LocalDriver, at: At, root: Path) -> None:
    inner = driver.walk(at(b"a"), [b"b", b"c"]).node
    assert inner is not None
    above = driver.walk(inner, [b".."]).node
    assert above is not None
    driver.release(inner)
    driver.rename(above, at(b""), b"renamed")
    assert (root / "renamed/c").is_dir()
    driver.unlinkat(above, b"c", folder=True)
    driver.remove(above)
    assert not (root / "renamed").exists()
    driver.release(above)


def test_unlink(driver: LocalDriver, at: At, root: Path) -> None:
    top = at(b"")
    for name, folder, code in (
        (b"a", False, errno.EISDIR), (b"a", True, errno.ENOTEMPTY), (b"link", True, errno.ENOTDIR),
        (b"none", False, errno.ENOENT), (b".", True, errno.EINVAL), (b"..", True, errno.ENOTEMPTY),
        (b"..", False, errno.EISDIR),
    ):  # fmt: skip
        with pytest.raises(OSError, match="Errno") as caught:
            driver.unlinkat(top, name, folder=folder)
        assert caught.value.errno == code
    driver.unlinkat(top, b"link", folder=False)
    driver.unlinkat(at(b"a/b"), b"c", folder=True)
    assert not os.path.lexists(root / "link")
    assert not (root / "a/b/c").exists()


def test_a_name_used_again_is_another_object(driver: LocalDriver, at: At, root: Path) -> None:
    old = at(b"a/file")
    driver.unlinkat(at(b"a"), b"file", folder=False)
    (root / "a/file").write_bytes(b"new one")
    new = at(b"a/file")
    assert new is not old
    assert driver.getattr(new)[0].path != driver.getattr(old)[0].path
    assert (driver.getattr(old)[1].size, driver.getattr(new)[1].size) == (5, 7)


def test_readonly(root: Path, no_leak: None, at: At, driver: LocalDriver) -> None:  # H163
    export = LocalDriver(root, readonly=True)
    top, _ = export.attach(b"", 0)
    node = export.walk(top, [b"a", b"file"]).node
    assert node is not None
    operations: list[Callable[[], None]] = [
        lambda: export.link(top, node, b"x"),
        lambda: export.rename(node, top, b"x"),
        lambda: export.renameat(top, b"a", top, b"x"),
        lambda: export.unlinkat(top, b"link", folder=False),
        lambda: export.remove(node),
    ]
    for operation in operations:
        with pytest.raises(OSError, match="Read-only") as caught:
            operation()
        assert caught.value.errno == errno.EROFS
    export.close()


def deep(driver: LocalDriver, at: At, levels: int) -> Node:
    """A folder that many levels below the root, made and found step by step."""
    node = at(b"")
    node.refs += 1
    for _ in range(levels):
        driver.mkdir(node, b"d", 0o755, os.geteuid(), os.getegid())
        below = driver.walk(node, [b"d"]).node
        assert below is not None
        driver.release(node)
        node = below
    return node


@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_a_run_of_dot_dot_climbs_to_the_root_once(driver: LocalDriver, at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    node = deep(driver, at, 200)
    opened: list[bytes] = []

    def count(name: bytes, *args: Any, **keywords: Any) -> int:
        opened.append(name)
        return os.open(name, *args, **keywords)

    monkeypatch.setattr(local_names, "_open", count)
    found = driver.walk(node, [b".."] * 16)
    assert len(found.qids) == 16
    assert len(opened) == 200 + (184 if driver._model.placed else 0)  # once more to know where the last one is
    assert found.node is not None
    above: list[int] = []
    here = node
    for _ in range(16):
        step = driver.walk(here, [b".."])
        assert step.node is not None
        above.append(step.qids[0].path)
        if here is not node:
            driver.release(here)
        here = step.node
    assert [qid.path for qid in found.qids] == above
    driver.release(here)
    driver.release(found.node)
    monkeypatch.setattr(local_names, "_MAX_CLIMB", 100)
    with pytest.raises(OSError, match="Errno") as caught:
        driver.walk(node, [b"..", b".."])
    assert caught.value.errno == errno.ELOOP
    driver.release(node)


def test_dot_dot_before_between_and_behind_names(driver: LocalDriver, at: At) -> None:
    top = at(b"")
    walk = driver.walk(at(b"a/b/c"), [b"..", b"..", b"b", b"..", b"..", b"..", b"..", b"a"])
    a, b, root = at(b"a").entry.path, at(b"a/b").entry.path, top.entry.path
    assert [qid.path for qid in walk.qids] == [b, a, b, a, root, root, root, a]
    assert walk.node is at(b"a")
    driver.release(walk.node)
    with pytest.raises(NotADirectoryError):
        driver.walk(at(b"a/file"), [b"..", b".."])
    walk = driver.walk(at(b"a"), [b"file", b"..", b".."])
    assert (len(walk.qids), walk.node) == (1, None)


def test_a_run_of_dot_dot_that_is_stopped_on_the_way(
    driver: LocalDriver, at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders before the one that cannot be opened are told."""
    node = at(b"a/b/c")
    forbidden = at(b"a/b").entry.path

    def refuse(name: bytes, flags: int, *, dir_fd: int) -> int:
        if os.fstat(dir_fd).st_ino == forbidden and refused:
            raise PermissionError(errno.EACCES, "no")
        return os.open(name, flags, dir_fd=dir_fd)

    def check(*_args: object) -> None:
        return None

    refused = True
    monkeypatch.setattr(local_names, "_open", refuse)
    monkeypatch.setattr(LocalDriver, "_check_inside", check)
    walk = driver.walk(node, [b"..", b"..", b".."])
    assert ([qid.path for qid in walk.qids], walk.node) == ([forbidden], None)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_walk_that_ends_for_want_of_descriptors_fails(
    driver: LocalDriver, at: At, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """An answer with fewer names would say that there is no such file."""

    def find(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    top = at(b"")
    monkeypatch.setattr(type(driver._table), "find", find)
    with pytest.raises(OSError, match="Errno") as caught:
        driver.walk(top, [b".", b"a"])
    assert caught.value.errno == code


# --- places ---


def place_of(driver: LocalDriver, node: Node) -> tuple[int | None, bytes]:
    """The inode number of the folder that a node is in, and its name there."""
    folder, name = driver.place(node)
    if folder is None:
        return None, name
    inode = driver.getattr(folder)[1].ino
    driver.release(folder)
    return inode, name


def test_a_node_knows_its_place(driver: LocalDriver, at: At, root: Path) -> None:
    assert place_of(driver, at(b"a/file")) == ((root / "a").stat().st_ino, b"file")
    assert place_of(driver, at(b"link")) == (root.stat().st_ino, b"link")
    assert place_of(driver, at(b"")) == (root.stat().st_ino, b"/")


def test_a_place_is_found_where_dots_led_to_a_folder(driver: LocalDriver, at: At, root: Path) -> None:
    node = driver.walk(at(b"a/b/c"), [b".."]).node
    assert node is not None
    assert place_of(driver, node) == ((root / "a").stat().st_ino, b"b")
    driver.release(node)
    up = driver.walk(at(b"a/b"), [b"..", b".."]).node
    assert up is not None
    assert place_of(driver, up) == (root.stat().st_ino, b"/")
    driver.release(up)


def test_a_place_follows_a_rename(driver: LocalDriver, at: At, root: Path) -> None:
    file = at(b"a/file")
    driver.renameat(at(b"a"), b"file", at(b"a/b"), b"moved")
    assert place_of(driver, file) == ((root / "a/b").stat().st_ino, b"moved")
    os.unlink(root / "a/b/moved")
    assert place_of(driver, file) == ((root / "a/b").stat().st_ino, b"moved")  # what it was called


def test_a_place_that_is_gone_is_unknown(driver: LocalDriver, at: At, root: Path) -> None:
    node = driver.walk(at(b"a/b/c"), [b".."]).node
    assert node is not None
    os.rmdir(root / "a/b/c")
    os.rmdir(root / "a/b")
    seen = place_of(driver, node)
    if driver._model.placed:  # it had to know when the walk found it, and this is what it was called
        assert seen[1] == b"b"
    else:
        assert seen == (None, b"")
    driver.release(node)
