"""More objects than descriptors. Each test runs with file handles and, as a process without the privilege, by name."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.closing import ClosedEntry
from pyvirtfs.fsdev.driver import Lock, LockHolder, SetAttributes
from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import ClosedFile, LocalFile
from pyvirtfs.memory.buffers import ViewBuffers
from tests.fsdev.small_budget import BUDGET, MANY, content, held, hold_many, read, release, walk, write

FULL = "Too many open files in system"


def test_a_guest_may_hold_more_objects_than_there_are_descriptors(small: LocalDriver) -> None:
    before = held()
    nodes = hold_many(small)
    assert held() - before <= BUDGET + 1
    qids = [small.getattr(node)[0] for node in nodes]
    assert len({qid.path for qid in qids}) == MANY
    for index in random.Random(1).sample(range(MANY), MANY):
        assert content(small, nodes[index]) == b"%d" % index
        assert small.getattr(nodes[index])[0] == qids[index]
    assert held() - before <= BUDGET + 1
    again = walk(small, b"many/7")
    assert again is nodes[7]
    assert type(again.entry) is Entry
    release(small, [*nodes, again])
    assert len(small._table) == 1


def test_open_files(small: LocalDriver, root: Path) -> None:
    before = held()
    nodes = hold_many(small)
    files = [small.open(node, os.O_RDWR, 0)[0] for node in nodes]
    assert sum(type(file) is ClosedFile for file in files) > MANY - BUDGET
    for index, file in enumerate(files):
        assert read(small, file) == b"%d" % index
        write(small, file, b"new %d" % index)
    for index in range(0, MANY, 7):
        small.fsync(files[index], datasync=False)
        assert (root / "many" / f"{index}").read_bytes() == b"new %d" % index
    assert held() - before <= BUDGET + 1
    for file in files:
        small.close_file(file)
        small.close_file(file)
    release(small, nodes)
    assert (len(small._table), len(small._files)) == (1, 0)


def test_a_file_is_opened_again_as_it_was(small: LocalDriver, root: Path) -> None:
    (root / "file").write_bytes(b"0123456789")
    node = walk(small, b"file")
    reading, _ = small.open(node, os.O_RDONLY, 0)
    appending, _ = small.open(node, os.O_WRONLY | os.O_APPEND, 0)
    emptying, _ = small.open(node, os.O_WRONLY | os.O_TRUNC, 0)
    write(small, appending, b"abc")
    nodes = hold_many(small)
    files = [small.open(each, os.O_RDONLY, 0)[0] for each in nodes]
    assert {type(file) for file in (reading, appending, emptying)} == {ClosedFile}
    write(small, appending, b"def")
    assert read(small, reading) == b"abcdef"
    write(small, emptying, b"ABC")
    assert read(small, reading) == b"ABCdef"
    with pytest.raises(OSError, match="Bad file descriptor"):
        write(small, reading, b"x")
    for file in (*files, reading, appending, emptying):
        small.close_file(file)
    release(small, [*nodes, node])


def test_what_the_guest_renames_is_found(small: LocalDriver, root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"here")
    node, folder = walk(small, b"a/b/file"), walk(small, b"a")
    nodes = hold_many(small)
    assert type(node.entry) is ClosedEntry
    top, _ = small.attach(b"", 0)
    small.renameat(top, b"a", top, b"c")
    assert content(small, node) == b"here"
    small.mkdir(folder, b"new", 0o755, 0, 0)
    assert (root / "c" / "new").is_dir()
    release(small, [*nodes, node, folder, top])


@pytest.mark.parametrize("how", ["unlinkat", "remove", "renameat", "rename"])
def test_what_is_removed_while_it_is_closed(small: LocalDriver, root: Path, how: str) -> None:
    """It must be opened before: there is no way to it afterwards."""
    (root / "file").write_bytes(b"still here")
    (root / "other").write_bytes(b"other")
    top, _ = small.attach(b"", 0)
    node, other = walk(small, b"file"), walk(small, b"other")
    nodes = hold_many(small)
    assert type(node.entry) is ClosedEntry
    match how:
        case "unlinkat":
            small.unlinkat(top, b"file", folder=False)
        case "remove":
            small.remove(node)
        case "renameat":
            small.renameat(top, b"other", top, b"file")
        case "rename":
            small.rename(other, top, b"file")
    for each in nodes:  # closes whatever can be closed
        small.getattr(each)
    assert small.getattr(node)[1].nlink == 0
    assert content(small, node) == b"still here"
    release(small, [*nodes, node, other, top])


def test_a_folder_that_is_removed_while_it_is_closed(small: LocalDriver, root: Path) -> None:
    (root / "folder").mkdir()
    top, _ = small.attach(b"", 0)
    node = walk(small, b"folder")
    nodes = hold_many(small)
    small.unlinkat(top, b"folder", folder=True)
    for each in nodes:
        small.getattr(each)
    assert stat.S_ISDIR(small.getattr(node)[1].mode)
    release(small, [*nodes, node, top])


def test_another_object_with_the_same_number(small: LocalDriver, root: Path, place: Path) -> None:
    """The host removes what is closed; a file that it makes then must not be taken for that."""
    (root / "old").touch()
    node = walk(small, b"old")
    nodes = hold_many(small)
    number = node.entry.path
    assert type(node.entry) is ClosedEntry
    (root / "old").unlink()
    for index in range(100):  # ext4 gives the number out again at once, tmpfs does not
        fresh = root / f"fresh{index}"
        fresh.write_bytes(b"fresh")
        if fresh.stat().st_ino == number:
            break
    with pytest.raises(OSError, match="Stale") as caught:
        small.getattr(node)
    assert caught.value.errno == errno.ESTALE
    found = walk(small, os.fsencode(fresh.name))
    assert found.entry is not node.entry
    assert content(small, found) == b"fresh"
    with pytest.raises(OSError, match="Stale"):
        small.getattr(node)
    release(small, [*nodes, node, found])
    assert len(small._table) == 1


def test_what_stays_open(small: LocalDriver, root: Path) -> None:
    """Objects without a name, those with locks, open folders: then it is ENFILE, and what there is goes on working."""
    before = held()
    (root / "locked").write_bytes(b"locked")
    (root / "gone").write_bytes(b"gone")
    top, _ = small.attach(b"", 0)
    locked, gone = walk(small, b"locked"), walk(small, b"gone")
    holder = LockHolder(1)
    assert small.lock(locked, Lock(True, 0, None, 1, b""), holder)
    small.unlinkat(top, b"gone", folder=False)
    folders: list[Any] = []
    with pytest.raises(OSError, match=FULL):
        folders.extend(small.open(top, os.O_RDONLY, 0)[0] for _ in range(2 * BUDGET))
    # root, locked, gone, the lock, and the descriptor by which handles are opened, if that is how it is done
    assert len(folders) in {BUDGET - 4, BUDGET - 5}
    with pytest.raises(OSError, match=FULL):
        walk(small, b"many")
    assert content_or_full(small, gone) is None
    small.close_file(folders.pop())
    assert content_or_full(small, gone) == b"gone"
    assert small.getlock(locked, Lock(True, 0, None, 2, b""), LockHolder(2)) is not None
    assert len(small.readdir(folders[0], 0)) == 4
    for file in folders:
        small.close_file(file)
    assert small.release_locks(locked, holder) == 1
    release(small, [top, locked, gone])
    assert held() - before <= 1


def test_what_is_known_goes_on_when_nothing_can_be_closed(small: LocalDriver, root: Path) -> None:
    """With a few descriptors beyond the budget, not more."""
    top, _ = small.attach(b"", 0)
    linked = hold_many(small)[:20]
    gone: list[Node] = []
    files: list[LocalFile] = []

    def hold_without_name(index: int) -> None:
        (root / f"gone{index}").write_bytes(b"%d" % index)
        gone.append(walk(small, b"gone%d" % index))
        files.append(small.open(gone[-1], os.O_RDWR, 0)[0])
        small.unlinkat(top, b"gone%d" % index, folder=False)

    with pytest.raises(OSError, match=FULL):
        any(map(hold_without_name, range(BUDGET)))
    assert len(gone) > BUDGET - 8
    for _ in range(2):
        for index, file in enumerate(files):
            assert read(small, file).rstrip(b"!") == b"%d" % index
            assert small.write(file, len(b"%d" % index), ViewBuffers.of(bytearray(b"!"))) == 1
        for index, node in enumerate(linked):
            assert small.getattr(node)[1].size == len(b"%d" % index)
        assert len(small._table.open) + small._table.others <= BUDGET + 6
    for file in files:
        small.close_file(file)


def content_or_full(driver: LocalDriver, node: Node) -> bytes | None:
    try:
        return content(driver, node)
    except OSError as error:
        if error.errno != errno.ENFILE:
            raise
        return None


def test_many_that_cannot_be_closed_come_first(small: LocalDriver, root: Path) -> None:
    """They do not hide those behind them that can."""
    top, _ = small.attach(b"", 0)
    pinned = []
    for index in range(BUDGET // 2):
        (root / f"p{index}").touch()
        pinned.append(walk(small, b"p%d" % index))
        small.unlinkat(top, b"p%d" % index, folder=False)
    nodes = hold_many(small)
    for index, node in enumerate(nodes):
        assert content(small, node) == b"%d" % index
    assert all(type(node.entry) is Entry for node in pinned)
    release(small, [*nodes, *pinned, top])


def test_a_long_way_to_what_is_closed(small: LocalDriver, root: Path) -> None:
    depth = 300
    node = walk(small, b"many")
    top, _ = small.attach(b"", 0)
    fd = os.open(root, os.O_PATH)
    held_nodes = [top]
    for _ in range(depth):
        os.mkdir(b"deep", dir_fd=fd)
        below = os.open(b"deep", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
        found = small.walk(held_nodes[-1], [b"deep"]).node
        assert found is not None
        held_nodes.append(found)
    os.close(fd)
    nodes = hold_many(small)
    assert type(held_nodes[-1].entry) is ClosedEntry
    small.mkdir(held_nodes[-1], b"bottom", 0o755, 0, 0)
    found = small.walk(held_nodes[-1], [b"bottom"]).node
    assert found is not None
    assert small.getattr(found)[1].mode == 0o40755
    release(small, [*reversed(held_nodes), node, found, *nodes])
    assert len(small._table) == 1
    subprocess.run(["rm", "-rf", root / "deep"], check=True)


def test_a_folder_known_only_from_what_is_below_it(small: LocalDriver, root: Path) -> None:
    """Its own fid is clunked: nothing says any more where it is, and it is needed all the same."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"here")
    middle = walk(small, b"a/b")
    node = walk(small, b"a/b/file")
    nodes = hold_many(small)
    assert type(middle.entry) is ClosedEntry
    small.release(middle)
    for each in nodes:
        small.getattr(each)
    assert content(small, node) == b"here"
    small.remove(node)
    assert not (root / "a" / "b" / "file").exists()
    release(small, [*nodes, node])


def test_a_mode_that_forbids_to_open_it_again(small: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the privilege to override modes, an open file whose mode changes is opened before that."""
    monkeypatch.setattr("pyvirtfs.fsdev.closing._opens_anything", lambda: False)
    node = walk(small, b"many/0")
    file, _ = small.open(node, os.O_RDWR, 0)
    nodes = hold_many(small)
    files = [small.open(each, os.O_RDONLY, 0)[0] for each in nodes]
    assert type(file) is ClosedFile
    small.setattr(node, SetAttributes(mode=0), 0)
    assert type(file) is LocalFile
    for each in files:
        assert read(small, each)
    assert type(file) is LocalFile  # nobody could open that again
    assert read(small, file) == b"0"
    for each in (*files, file):
        small.close_file(each)
    release(small, [*nodes, node])


def test_listing_goes_on(small: LocalDriver) -> None:
    folder = walk(small, b"many")
    listed, _ = small.open(folder, os.O_RDONLY, 0)
    names: list[bytes] = []
    cookie = 0
    while entries := small.readdir(listed, cookie)[:10]:
        names += [entry[-1] for entry in entries]
        cookie = entries[-1][1]
        release(small, hold_many(small))
    assert sorted(names) == sorted([b".", b"..", *(b"%d" % index for index in range(MANY))])
    small.close_file(listed)
    small.release(folder)


def perform(driver: LocalDriver, what: int, at: Node, other: Node, file: LocalFile | None, words: list[bytes]) -> Any:
    """Do something; the answer, or the error's number."""
    name, new_name, data = words
    try:
        match what:
            case 0:
                return driver.walk(at, [name]).node
            case 3:
                return driver.mkdir(at, name, 0o755, 0, 0).type
            case 4:
                return driver.create(at, name, os.O_RDWR, 0o644, 0, 0)[:2]
            case 5:
                return driver.renameat(at, name, other, new_name)
            case 6:
                return driver.unlinkat(at, name, folder=data < b"4")
            case 7:
                return driver.link(at, other, name)
            case 8:
                found = driver.getattr(at)[1]
                return found.nlink, found.mode, found.size if stat.S_ISREG(found.mode) else 0
            case _:
                return None if file is None else (write(driver, file, data), read(driver, file))
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("seed", range(6))
def test_random_work_gives_the_same_as_without_a_budget(small: LocalDriver, root: Path, place: Path, seed: int) -> None:
    """Two drivers, one with few descriptors, do the same on two folders."""
    (place / "twin").mkdir()
    (root / "work").mkdir()
    (place / "twin" / "work").mkdir()
    twin = LocalDriver(place / "twin")
    rng = random.Random(seed)
    nodes: list[tuple[Node, Node]] = [(walk(small, b"work"), walk(twin, b"work"))]
    files: list[tuple[LocalFile, LocalFile]] = []
    names = [b"n%d" % index for index in range(300)]
    for _ in range(1500):
        folders = [each for each in nodes if each[0].entry.kind == stat.S_IFDIR]
        at, other = (rng.choice(folders if rng.random() < 0.8 else nodes) for _ in range(2))
        file = rng.choice(files) if files else (None, None)
        words = [*rng.choices(names, k=2), b"%d" % rng.randrange(1000)]
        what = rng.choice((0, 0, 3, 3, 4, 4, 4, 4, 5, 6, 7, 8, 8, 9, 9))
        mine = perform(small, what, at[0], other[0], file[0], words)
        theirs = perform(twin, what, at[1], other[1], file[1], words)
        if isinstance(mine, Node):
            nodes.append((mine, theirs))
        elif what == 4 and isinstance(mine, tuple):
            nodes.append((mine[0], theirs[0]))
            files.append((mine[1], theirs[1]))
        else:
            assert mine == theirs, (what, words)
    assert len(nodes) + len(files) > 3 * BUDGET
    assert len(small._table.open) + small._table.others <= BUDGET + 2
    for my_file, their_file in files:
        small.close_file(my_file)
        twin.close_file(their_file)
    for mine, theirs in nodes:
        small.release(mine)
        twin.release(theirs)
    assert len(small._table) == 1
    twin.close()


MANY_FILES = """
import os, resource, sys
from pyvirtfs.fsdev.local import LocalDriver

resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
driver = LocalDriver(sys.argv[1])
top, _ = driver.attach(b"", 0)
nodes = [driver.walk(top, [name]).node for name in sorted(map(os.fsencode, os.listdir(sys.argv[1])))]
assert len(os.listdir("/proc/self/fd")) < 800
assert len({driver.getattr(node)[0].path for node in nodes}) == len(nodes)
print(len(nodes))
driver.close()
"""


def test_with_the_usual_limit_of_a_process(root: Path) -> None:
    count = 5000
    for index in range(count):
        (root / f"{index}").touch()
    done = subprocess.run(
        [sys.executable, "-c", MANY_FILES, os.fspath(root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{count}\n", "")


@pytest.mark.parametrize("back", [False, True])
def test_a_folder_above_that_the_host_has_renamed(small: LocalDriver, root: Path, back: bool) -> None:
    (root / "above" / "folder").mkdir(parents=True)
    held = [walk(small, b"above"), walk(small, b"above/folder")]
    (root / "above").rename(root / "renamed")
    held.append(walk(small, b"renamed"))
    if back:
        (root / "renamed").rename(root / "above")
    held += [walk(small, b"many/%d" % index) for index in range(MANY)]
    assert isinstance(held[0].entry, ClosedEntry)
    assert isinstance(held[1].entry, ClosedEntry)
    assert small.getattr(held[1])[1].ino == (root / ("above" if back else "renamed") / "folder").stat().st_ino
    for node in held:
        small.release(node)


def test_a_folder_above_that_was_found_from_below_first(small: LocalDriver, root: Path) -> None:
    (root / "above" / "folder" / "inner").mkdir(parents=True)
    held = [walk(small, b"above/folder/inner"), walk(small, b"above/folder/inner/..")]
    held += [walk(small, b"above/folder"), walk(small, b"above")]
    held += [walk(small, b"many/%d" % index) for index in range(MANY)]
    assert small.getattr(held[0])[1].ino == (root / "above" / "folder" / "inner").stat().st_ino
    for node in held:
        small.release(node)


def test_many_that_stay_open_hide_nobody(root: Path, no_leak: None) -> None:
    """More than are looked at in one go: behind them is something that can be closed."""
    pinned, linked, budget = 1100, 300, 1300
    for index in range(pinned):
        (root / f"pinned{index}").touch()
    for index in range(linked):
        (root / f"linked{index}").touch()
    driver = LocalDriver(root, max_descriptors=budget)
    top, _ = driver.attach(b"", 0)
    for index in range(pinned):
        driver.walk(top, [b"pinned%d" % index])
    for index in range(pinned):
        driver.unlinkat(top, b"pinned%d" % index, folder=False)
    for index in range(linked):
        assert driver.walk(top, [b"linked%d" % index]).node is not None
    driver.close()
