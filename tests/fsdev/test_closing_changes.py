"""Closed objects and files whose names, modes, owners, mounts change, or what this process may do."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.closing import ClosedEntry
from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import ClosedFile, LocalFile
from tests.fsdev.small_budget import BUDGET, MANY, content, export_of, hold_many, read, release, walk, write

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SOMEBODY = 12345


def open_many(driver: LocalDriver) -> tuple[list[Node], list[LocalFile]]:
    """Hold and open all files of the folder, which closes whatever can be closed of the rest."""
    nodes = hold_many(driver)
    return nodes, [driver.open(node, os.O_RDONLY, 0)[0] for node in nodes]


def close_all(driver: LocalDriver, files: list[LocalFile]) -> None:
    for file in files:
        driver.close_file(file)


# --- names ---


def test_an_open_file_whose_other_name_is_forgotten(small: LocalDriver, root: Path) -> None:
    """What is left is a name that is gone."""
    (root / "f").write_bytes(b"data")
    os.link(root / "f", root / "g")
    top, _ = small.attach(b"", 0)
    f, g = walk(small, b"f"), walk(small, b"g")
    file, _ = small.open(g, os.O_RDWR, 0)
    small.unlinkat(top, b"g", folder=False)
    nodes, files = open_many(small)
    assert (type(g.entry), type(file)) == (ClosedEntry, ClosedFile)
    small.release(f)
    nodes += hold_many(small)
    assert write(small, file, b"DATA") == 4
    assert (root / "f").read_bytes() == b"DATA"
    assert small.getattr(g)[1].nlink == 1
    close_all(small, [*files, file])
    release(small, [*nodes, g, top])
    assert len(small._table) == 1


def test_a_folder_whose_name_is_forgotten_but_for_dots(small: LocalDriver, root: Path) -> None:
    (root / "folder" / "below").mkdir(parents=True)
    below = walk(small, b"folder/below")
    dots = small.walk(below, [b".."]).node
    named = walk(small, b"folder")
    assert dots is not None
    assert dots is not named
    assert dots.entry is named.entry
    small.release(below)
    nodes = hold_many(small)
    assert type(dots.entry) is ClosedEntry
    small.release(named)
    nodes += hold_many(small)
    assert small.getattr(dots)[1].ino == (root / "folder").stat().st_ino
    release(small, [*nodes, dots])
    assert len(small._table) == 1


def test_only_the_last_of_many_names_is_left(small: LocalDriver, root: Path) -> None:
    """Nobody looks through all of them, but nothing is lost."""
    top, _ = small.attach(b"", 0)
    (root / "0").write_bytes(b"data")
    for index in range(1, 40):
        os.link(root / "0", root / f"{index}")
    names = [walk(small, b"%d" % index) for index in range(40)]
    for index in (*range(20), *range(21, 40)):
        small.unlinkat(top, b"%d" % index, folder=False)
    nodes = hold_many(small)
    assert content(small, names[0]) == b"data"
    release(small, [*names[1:], *hold_many(small)])
    assert content(small, names[0]) == b"data"
    release(small, [*nodes, names[0], top])
    assert len(small._table) == 1


# --- modes and owners ---

NO_ACCESS = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 0, 0xFFFFFFFF) for tag in (0x01, 0x04, 0x20))
"""An access control list by which nobody may do anything, not even the owner."""


@pytest.mark.parametrize(
    "how", ["mode", pytest.param("owner", marks=needs_root), pytest.param("acl", marks=needs_root)]
)
@pytest.mark.parametrize("opened_by", ["handles", "names"])
def test_all_files_are_open_before_the_last_may_not_be(
    root: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch, opened_by: str, how: str
) -> None:
    """Making room for one of them must not close another, as long as the mode still allows it."""
    monkeypatch.setattr("pyvirtfs.fsdev.closing._opens_anything", lambda: False)
    small = export_of(root, opened_by, monkeypatch, "passthrough" if how == "acl" else "none")
    top, _ = small.attach(b"", 0)
    node = walk(small, b"many/0")
    files = [small.open(node, os.O_RDWR, 0)[0] for _ in range(BUDGET // 2)]
    folders = [small.open(top, os.O_RDONLY, 0)[0] for _ in range(BUDGET // 2)]  # these stay open
    assert {type(file) for file in files} == {LocalFile, ClosedFile}
    if how == "mode":
        small.setattr(node, SetAttributes(mode=0o444), 0)
    elif how == "owner":
        small.setattr(node, SetAttributes(uid=SOMEBODY, gid=SOMEBODY), 0)
    else:
        try:
            small.setxattr(node, b"system.posix_acl_access", NO_ACCESS, 0, 0)
        except OSError as error:
            pytest.skip(f"no access control lists here: {error}")
        assert stat.S_IMODE((root / "many" / "0").stat().st_mode) == 0
    assert {type(file) for file in files} == {LocalFile}
    close_all(small, folders)
    nodes = hold_many(small)
    for file in files:
        assert type(file) is LocalFile
        assert write(small, file, b"DATA") == 4
    close_all(small, files)
    release(small, [*nodes, node, top])
    small.close()


def test_a_change_for_which_there_is_no_room(small: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing changes, and the open files go on working."""
    monkeypatch.setattr("pyvirtfs.fsdev.closing._opens_anything", lambda: False)
    top, _ = small.attach(b"", 0)
    node = walk(small, b"many/0")
    files = [small.open(node, os.O_RDWR, 0)[0] for _ in range(BUDGET)]
    folders = [small.open(top, os.O_RDONLY, 0)[0] for _ in range(BUDGET // 2)]
    with pytest.raises(OSError, match="Too many open files in system"):
        small.setattr(node, SetAttributes(mode=0o400), 0)
    assert small.getattr(node)[1].mode & 0o600 == 0o600
    for file in files:
        assert write(small, file, b"DATA") == 4
    close_all(small, [*files, *folders])
    small.setattr(node, SetAttributes(mode=0o400), 0)
    release(small, [node, top])


# --- what this process may do ---


@contextlib.contextmanager
def somebody() -> Iterator[None]:
    """For a while this process is an ordinary user, and may do what that one may."""
    os.seteuid(SOMEBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def give_away(root: Path) -> None:
    for folder, _, names in os.walk(root):
        os.chown(folder, SOMEBODY, SOMEBODY)
        for name in names:
            os.chown(os.path.join(folder, name), SOMEBODY, SOMEBODY)


@needs_root
def test_privileges_given_up_before_anything_is_closed(small: LocalDriver, root: Path) -> None:
    """An open file that only root could open again stays open."""
    give_away(root)
    with somebody():
        top, _ = small.attach(b"", 0)
        node, file, _ = small.create(top, b"object", os.O_RDWR, 0o444, SOMEBODY, SOMEBODY)
        nodes, files = open_many(small)
        assert any(type(each) is ClosedFile for each in files)
        assert write(small, file, b"data") == 4
        assert read(small, files[0]) == b"0"
        close_all(small, [*files, file])
    assert (root / "object").read_bytes() == b"data"
    release(small, [*nodes, node, top])


@needs_root
def test_privileges_given_up_after_something_was_closed(small: LocalDriver, root: Path) -> None:
    """What was closed to be opened by handle is looked up by name."""
    path = root
    for _ in range(40):
        path /= "deep"
        path.mkdir()
    (path / "file").write_bytes(b"here")
    give_away(root)
    top, _ = small.attach(b"", 0)
    held = [top]
    for name in [b"deep"] * 40 + [b"file"]:
        found = small.walk(held[-1], [name]).node
        assert found is not None
        held.append(found)
    held += hold_many(small)
    assert {type(node.entry) for node in held[1:42]} == {ClosedEntry}
    with somebody():
        assert content(small, held[41]) == b"here"
        for node in held:
            small.getattr(node)
        assert len({small.getattr(node)[0].path for node in held}) == 42 + MANY
    release(small, held)
    assert len(small._table) == 1


@needs_root
def test_the_access_time_of_somebody_elses_file(
    small: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may open everything, but is not its owner, cannot leave it alone: it is no condition, when opening again."""
    monkeypatch.setattr("pyvirtfs.fsdev.closing._opens_anything", lambda: True)
    (root / "file").write_bytes(b"data")
    os.chmod(root / "file", 0o644)
    with somebody():
        node = walk(small, b"file")
        file, _ = small.open(node, os.O_RDONLY | os.O_NOATIME, 0)
        nodes, files = open_many(small)
        for each in files:
            read(small, each)
        assert type(file) is ClosedFile
        assert read(small, file) == b"data"
        assert not file.flags & os.O_NOATIME
    os.chown(root / "file", 0, 0)
    close_all(small, [*files, file])
    release(small, [*nodes, node])


@needs_root
def test_the_access_time_of_a_file_that_was_given_away(root: Path, small: LocalDriver) -> None:
    node = walk(small, b"many/0")
    file, _ = small.open(node, os.O_RDONLY | os.O_NOATIME, 0)
    nodes, files = open_many(small)
    assert type(file) is ClosedFile
    assert read(small, file) == b"0"
    assert file.flags & os.O_NOATIME
    close_all(small, [*files, file])
    release(small, [*nodes, node])


# --- mounts ---


@contextlib.contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """Something is mounted at the last of the arguments."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount(8)")
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


@needs_root
@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_what_overlayfs_copies(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first change gives an object another time of birth: nothing is closed that would have to be known by that."""
    for name in ("lower", "upper", "work", "merged"):
        (root / name).mkdir()
    (root / "lower" / "a" / "b" / "c").mkdir(parents=True)
    (root / "lower" / "a" / "file").write_bytes(b"lower")
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    with mounted("-t", "overlay", "overlay", "-o", options, root / "merged"):
        small = export_of(root / "merged", "names", monkeypatch)
        try:
            a, b, c, file = (walk(small, path) for path in (b"a", b"a/b", b"a/b/c", b"a/file"))
            folder = walk(small, b"many")
            others: list[Node | None] = []
            with pytest.raises(OSError, match="Too many open files in system"):  # all of them stay open
                others.extend(small.walk(folder, [b"%d" % index]).node for index in range(MANY))
            last = others.pop()
            assert last is not None
            small.release(last)
            small.mkdir(c, b"new", 0o755, 0, 0)  # copies all folders above
            inodes = [os.stat(root / "merged" / path).st_ino for path in ("a", "a/b", "a/b/c", "a/file")]
            assert [small.getattr(node)[1].ino for node in (a, b, c, file)] == inodes
        finally:
            small.close()


@needs_root
@pytest.mark.parametrize("second", ["rw", "ro"])
def test_a_second_way_by_another_mount(small: LocalDriver, root: Path, second: str) -> None:
    """A closed file is found by way of a mount of its folder: it is the same, and still belongs to the first mount."""
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "a" / "f").write_bytes(b"data")
    with mounted("--bind", "-o", second, root / "a", root / "b"):
        f = walk(small, b"a/f")
        file, _ = small.open(f, os.O_RDWR, 0)
        nodes, files = open_many(small)
        assert (type(f.entry), type(file)) == (ClosedEntry, ClosedFile)
        g = walk(small, b"b/f")
        assert g.entry is f.entry
        assert type(f.entry) is Entry
        assert write(small, file, b"DATA") == 4
        small.setattr(f, SetAttributes(mode=0o600), 0)
        nodes += hold_many(small)
        assert write(small, file, b"data") == 4
        close_all(small, [*files, file])
        release(small, [*nodes, f, g])
        assert len(small._table) == 1


@needs_root
def test_found_by_another_mount_when_the_first_is_gone(
    root: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own way is gone, but it is the same object."""
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "a" / "f").write_bytes(b"data")
    small = export_of(root, "names", monkeypatch)
    with mounted("--bind", root / "a", root / "b"):
        b, f = walk(small, b"b"), walk(small, b"b/f")
        nodes = hold_many(small)
        assert {type(b.entry), type(f.entry)} == {ClosedEntry}
    g = walk(small, b"a/f")
    assert g.entry is f.entry
    assert content(small, f) == b"data"
    release(small, [*nodes, b, f, g])
    small.close()


def test_models_that_keep_modes_elsewhere(root: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of the host stays as it is, and the open files can be opened again."""
    monkeypatch.setattr("pyvirtfs.fsdev.closing._opens_anything", lambda: False)
    try:
        small = export_of(root, "names", monkeypatch, "mapped-xattr")
    except ConfigError as error:
        pytest.skip(str(error))
    top, _ = small.attach(b"", 0)
    node, file, _ = small.create(top, b"file", os.O_RDWR, 0o644, 5, 5)
    small.setattr(node, SetAttributes(mode=0, uid=7, gid=7), 5)
    nodes, files = open_many(small)
    assert type(file) is ClosedFile
    assert write(small, file, b"data") == 4
    small.setattr(node, SetAttributes(mode=0o400, uid=8), 5)
    nodes += hold_many(small)
    assert read(small, file) == b"data"
    close_all(small, [*files, file])
    release(small, [*nodes, node, top])
    small.close()
