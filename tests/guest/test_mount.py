from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import Mount
from pyvirtfs.guest.mount import split_names
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import Pair, pair


@pytest.fixture
def both(export: Path) -> Iterator[Pair]:
    with pair(f"local,path={export},security_model=none") as both:
        yield both


def test_a_mount_is_three_messages(both: Pair) -> None:
    assert both.session.counts == {"Tversion": 1, "Tattach": 1, "Tgetattr": 1}


def test_users_are_further_attaches(both: Pair) -> None:
    user = both.mount.as_user(1000)
    assert (user.uid, user.gid, user.umask) == (1000, 1000, 0o022)
    assert both.mount.as_user(1001, gid=5, umask=0).gid == 5
    assert len(both.session.client.fids) == 3
    user.umount()
    assert len(both.session.client.fids) == 2
    assert both.mount.path("file").exists()  # only the user has gone
    both.mount.umount()
    assert both.session.client.fids == frozenset()
    both.mount.umount()


def test_a_user_who_left_is_forgotten(both: Pair) -> None:
    one, two = both.mount.as_user(1000), both.mount.as_user(1001)
    below = one.as_user(1002)
    one.umount()
    one.umount()
    assert both.mount.users == [two]
    assert below.root_fid == c.NOFID
    assert both.session.client.fids == {both.mount.root_fid, two.root_fid}


def test_leaving_the_context_unmounts(both: Pair) -> None:
    with both.mount as mount:
        assert mount.root_fid in both.session.client.fids
    assert both.session.client.fids == frozenset()
    both.remount()
    both.channel.stop()
    with pytest.raises(DeviceError), both.mount:
        both.mount.path("file").exists()


@pytest.mark.parametrize("count", [1, 16, 17, 32, 33])
def test_paths_are_walked_sixteen_names_at_a_time(both: Pair, export: Path, count: int) -> None:
    names = [b"d"] * count
    (export / ("/".join(["d"] * count))).mkdir(parents=True)
    both.session.counts.clear()
    with both.mount.fid(names) as fid:
        assert both.mount.getattr(fid).qid.is_directory
    steps = -(-count // 16)
    assert both.session.counts == {"Twalk": steps, "Tgetattr": 1, "Tclunk": steps}


def test_links_anywhere_on_the_way(both: Pair, export: Path) -> None:
    deep = export / "/".join(["d"] * 20)
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("x")
    (export / "short").symlink_to("/".join(["d"] * 18))
    (export / "d" / "back").symlink_to("../short")
    (deep / "link").symlink_to("/d/back/d/./d//leaf")
    names = [b"d"] * 20 + [b"link"]
    with both.mount.fid(names) as fid:
        assert both.mount.getattr(fid).size == 1
    with both.mount.fid(names, follow=False) as fid:
        assert both.mount.getattr(fid).qid.is_symlink
    assert both.session.client.fids == {both.mount.root_fid}


def test_a_walk_fits_in_a_message(export: Path) -> None:
    """16 names of 255 bytes are more than the smallest msize."""
    names = [b"x" * 255] * 17
    with pair(f"local,path={export},security_model=none", msize=4096) as both:
        both.mount.path(b"/".join(names)).mkdir(parents=True)
        both.session.counts.clear()
        with both.mount.fid(names) as fid:
            assert both.mount.getattr(fid).qid.is_directory
        assert both.session.counts["Twalk"] == 2
        with pytest.raises(OSError, match="too long") as caught:
            both.mount.resolve([b"x" * 5000])  # for which a message of this size has no room
        assert caught.value.errno == errno.ENAMETOOLONG
        assert both.session.client.fids == {both.mount.root_fid}
        assert both.mount.path().exists()


@pytest.mark.parametrize("nbytes", [65536, 1 << 20])
def test_names_longer_than_strings_of_9p(both: Pair, nbytes: int) -> None:
    name = b"x" * nbytes
    path = both.mount.path(b"folder", name)
    both.mount.path(b"folder").mkdir()
    for act in (path.stat, path.mkdir, path.unlink, path.touch, lambda: path.symlink_to("x"), path.readlink):
        with pytest.raises(OSError, match="too long") as caught:
            act()
        assert caught.value.errno == errno.ENAMETOOLONG
    assert both.session.client.fids == {both.mount.root_fid}


def chain_of_links(export: Path, count: int) -> list[bytes]:
    for i in range(count):
        (export / f"link{i}").symlink_to(f"link{i + 1}" if i + 1 < count else "file")
    return [b"link0"]


@pytest.mark.parametrize(("count", "works"), [(40, True), (41, False)])
def test_forty_links_and_no_more(both: Pair, export: Path, count: int, works: bool) -> None:
    names = chain_of_links(export, count)
    if works:
        both.session.clunk(both.mount.resolve(names))
    else:
        with pytest.raises(OSError, match="symbolic links") as caught:
            both.mount.resolve(names)
        assert caught.value.errno == errno.ELOOP
    assert both.session.client.fids == {both.mount.root_fid}


@pytest.mark.parametrize(
    ("names", "number"),
    [
        ([b"none"], errno.ENOENT),
        ([b"file", b"x"], errno.ENOTDIR),
        ([b"folder", b"none", b"x"], errno.ENOENT),
        ([b"folder", b"dangling"], errno.ENOENT),
        ([b"folder", b"to_file", b"x"], errno.ENOTDIR),
    ],
)
def test_errors_on_the_way_leave_no_fid(both: Pair, export: Path, names: list[bytes], number: int) -> None:
    (export / "folder").mkdir()
    (export / "folder" / "dangling").symlink_to("nowhere")
    (export / "folder" / "to_file").symlink_to("../file")
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        both.mount.resolve(names)
    assert caught.value.errno == number
    assert both.session.client.fids == {both.mount.root_fid}


def test_looking_up_goes_as_far_as_it_can(both: Pair, export: Path) -> None:
    (export / "folder" / "below").mkdir(parents=True)
    (export / "link").symlink_to("folder/below/../below")
    found = both.mount.look_up([b"link", b"..", b"none", b"x"])
    assert (found.names, found.missing, found.kind) == ((b"folder",), (b"none", b"x"), c.QTDIR)
    assert isinstance(found.error, FileNotFoundError)
    assert both.mount.getattr(found.fid).qid.is_directory
    both.session.clunk(found.fid)
    found = both.mount.look_up([b"link"], follow=False)
    assert (found.names, found.missing, found.kind, found.error) == ((b"link",), (), c.QTSYMLINK, None)
    both.session.clunk(found.fid)
    with pytest.raises(NotADirectoryError):
        both.mount.resolve([b"file"], directory=True)
    with pytest.raises(ValueError, match="null"):
        both.mount.resolve([b"a", b"\0"])
    assert both.session.client.fids == {both.mount.root_fid}


def test_the_servers_errno_is_the_one_reported(both: Pair, export: Path) -> None:
    """A walk that ends on the way tells none."""
    (export / "folder").mkdir()
    with pytest.raises(OSError, match="too long") as caught:
        both.mount.resolve([b"folder", b"x" * 256])
    assert caught.value.errno == errno.ENAMETOOLONG


def test_the_root_must_be_a_folder(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = both.mount.getattr(both.mount.root_fid)
    monkeypatch.setattr(both.session, "run", lambda _: attributes._replace(mode=0o100644))
    with pytest.raises(NotADirectoryError):
        Mount(both.session)


def test_split_names() -> None:
    assert split_names(b"//a/./b/../c/") == [b"a", b"b", b"..", b"c"]
