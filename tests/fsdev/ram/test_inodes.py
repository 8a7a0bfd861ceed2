from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.fsdev.ram.inodes import Folder, Inode, Link
from pyvirtfs.fsdev.ram.space import Space


def inode(mode: int = stat.S_IFREG | 0o644, space: Space | None = None) -> Inode:
    return Inode(space or Space(0, 10), 7, mode, 1, 2, 0xFFFFFFFF)


@given(steps=st.lists(st.integers(-1, 20), max_size=300))
def test_cookies_rise_and_stay(steps: list[int]) -> None:
    folder, model = Folder(), dict[int, Link]()
    for step in steps:
        if step < 0 or step >= len(model):
            link = Link(inode())
            folder.add(link, b"%d" % len(folder._cookies) + b"." + b"%d" % folder._next)
            assert link.cookie not in model
            assert link.cookie > max(model, default=2)
            model[link.cookie] = link
        else:
            cookie = sorted(model)[step]
            folder.discard(model.pop(cookie))
        assert folder._gaps <= max(64, len(folder.names)) + 1
    for cookie in (0, 1, 2, *model, 10**6):
        assert list(folder.after(cookie)) == [model[at] for at in sorted(model) if at > cookie]


def test_gaps_are_closed() -> None:
    folder = Folder()
    links = [Link(inode()) for _ in range(1000)]
    for number, link in enumerate(links):
        folder.add(link, b"%d" % number)
    for link in links[:990]:
        folder.discard(link)
    assert len(folder._links) < 200
    assert list(folder.after(0)) == links[990:]


def test_versions_skip_zero() -> None:
    one = inode()
    one.changed()
    assert one.version == 1
    assert one.qid == (0, 1, 7)


def test_attributes() -> None:
    one = inode(stat.S_IFCHR | 0o600)
    one.device = 5, 6
    one.mtime = -1
    found = one.attributes(99)
    assert (found.mode, found.rdev_major, found.rdev_minor, found.dev_minor) == (stat.S_IFCHR | 0o600, 5, 6, 99)
    assert (found.mtime_sec, found.mtime_nsec) == (-1, 999_999_999)
    assert (found.uid, found.gid, found.ino, found.size, found.nlink) == (1, 2, 7, 0, 0)


def test_set_ids() -> None:
    for mode, left in ((0o6755, 0o755), (0o6745, 0o2745), (0o755, 0o755)):
        one = inode(stat.S_IFREG | mode)
        one.clear_set_ids()
        assert oct(one.mode) == oct(left)
    folder = inode(stat.S_IFDIR | 0o6755)
    folder.clear_set_ids()
    assert folder.mode == 0o6755


def test_memory_is_free_once_nobody_can_reach_it() -> None:
    space = Space(1 << 20, 10)
    space.take_name()
    one = inode(space=space)
    one.names, one.refs = 1, 2
    one.set_extra(5000)
    assert (space.free, space.free_names) == (254, 9)
    one.names = 0
    one.free_if_unused()
    one.drop()
    assert space.free_names == 9
    one.drop()
    assert (space.free, space.free_names) == (256, 10)
    one.drop()  # a handle given back twice
    one.free_if_unused()
    assert (space.free, space.free_names) == (256, 10)
