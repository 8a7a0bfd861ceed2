"""A guest cannot take the descriptors of the program around the driver."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import LocalFile, descriptor_budget

BUDGET = 20
FULL = "Too many open files in system"
pytestmark = pytest.mark.parametrize("place", ["tmpfs"], indirect=True)


@pytest.fixture
def small(root: Path, no_leak: None) -> Iterator[LocalDriver]:
    for index in range(40):
        (root / f"{index}").touch()
    (root / "folder").mkdir()
    export = LocalDriver(root, max_descriptors=BUDGET)
    yield export
    export.close()


def count() -> int:
    return len(os.listdir("/proc/self/fd"))


def fill(export: LocalDriver) -> tuple[Node, list[Node]]:
    """Hold one file after the other and remove its name, so that it cannot be closed, until the budget is spent."""
    top, _ = export.attach(b"", 0)
    nodes: list[Node] = []
    with pytest.raises(OSError, match=FULL):
        nodes.extend(hold_without_name(export, top, b"%d" % index) for index in range(1, 40))
    return top, nodes


def hold_without_name(export: LocalDriver, top: Node, name: bytes) -> Node:
    node = export.walk(top, [name]).node
    assert node is not None
    export.unlinkat(top, name, folder=False)
    return node


def test_walks_stop_at_the_budget(small: LocalDriver) -> None:
    before = count()
    top, nodes = fill(small)
    assert before + BUDGET - 2 <= count() <= before + BUDGET  # one more is there to open what was closed, by its handle
    assert len(nodes) in {BUDGET - 1, BUDGET - 2}
    same = small.walk(nodes[0], []).node  # what is known already costs nothing
    assert same is nodes[0]
    small.release(nodes.pop())
    assert small.walk(top, [b"39"]).node is not None


def test_a_long_walk_fails_instead_of_ending_early(small: LocalDriver) -> None:
    """Linux takes a walk of fewer names than it asked for as ENOENT."""
    top, _ = fill(small)
    with pytest.raises(OSError, match="Errno") as caught:
        small.walk(top, [b".", b"39"])
    assert caught.value.errno == errno.ENFILE
    found = small.walk(top, [b".", b"not there"])
    assert (len(found.qids), found.node) == (1, None)


def test_open_folders_count(small: LocalDriver) -> None:
    top, _ = small.attach(b"", 0)
    files: list[LocalFile] = []
    before = count()
    with pytest.raises(OSError, match=FULL):
        files.extend(small.open(top, os.O_RDONLY, 0)[0] for _ in range(40))
    # `extend` keeps what came before the error
    assert len(files) in {BUDGET - 1, BUDGET - 2}
    assert count() - before <= BUDGET - 1
    with pytest.raises(OSError, match=FULL):
        small.walk(top, [b"0"])
    small.close_file(files.pop())
    small.close_file(files[0])
    small.close_file(files.pop(0))
    node = small.walk(top, [b"0"]).node
    assert node is not None
    small.open(node, os.O_RDONLY, 0)


def test_nothing_is_truncated_or_made_beyond_the_budget(small: LocalDriver, root: Path) -> None:
    (root / "0").write_bytes(b"hello")
    top, _ = small.attach(b"", 0)
    first = small.walk(top, [b"0"]).node
    assert first is not None
    assert small.lock(first, Lock(True, 0, None, 1, b""), LockHolder(1))  # it stays open
    fill(small)
    with pytest.raises(OSError, match=FULL):
        small.open(first, os.O_WRONLY | os.O_TRUNC, 0)
    assert (root / "0").read_bytes() == b"hello"
    for make in (
        lambda: small.create(top, b"new", os.O_RDWR, 0o644, 0, 0),
        lambda: small.mkdir(top, b"new", 0o755, 0, 0),
        lambda: small.mknod(top, b"new", 0o644, 0, 0, 0, 0),
        lambda: small.symlink(top, b"new", b"x", 0, 0),
    ):
        with pytest.raises(OSError, match=FULL):
            make()
        assert not os.path.lexists(root / "new")


def test_owners_of_locks_count(small: LocalDriver) -> None:
    top, _ = small.attach(b"", 0)
    node = small.walk(top, [b"0"]).node
    assert node is not None
    holder = LockHolder(1)
    before = count()
    taken: list[bool] = []
    with pytest.raises(OSError, match=FULL):
        taken.extend(small.lock(node, Lock(False, 0, 1, owner, b""), holder) is True for owner in range(40))
    assert len(taken) in {BUDGET - 2, BUDGET - 3}
    assert all(taken)
    assert count() - before <= BUDGET - 2
    assert small.getlock(node, Lock(False, 0, 1, 99, b""), holder) is None
    assert small.release_locks(node, holder) == len(taken)
    assert count() - before == small._table.others <= 1


def test_the_budget_follows_the_limit_of_the_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, expected in (
        (256, 192), (1024, 768), (1 << 20, 3 << 18), (64, 16), (resource.RLIM_INFINITY, 3 << 18),
    ):  # fmt: skip
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert descriptor_budget() == expected
        export = LocalDriver(root)
        assert export._table.budget == expected
        export.close()
    with pytest.raises(ConfigError, match="max_descriptors"):
        LocalDriver(root, max_descriptors=0)


EXHAUSTED = """
import errno, os, resource, sys
from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.fsdev.local import LocalDriver

resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
export = LocalDriver(sys.argv[1])
top, _ = export.attach(b"", 0)
node = export.walk(top, [b"0"]).node
folder, _ = export.open(top, os.O_RDONLY, 0)
holder = LockHolder(1)
assert export.lock(node, Lock(True, 0, None, 1, b""), holder)
try:
    for index in range(1, 400):
        export.walk(top, [b"%d" % index])
        export.unlinkat(top, b"%d" % index, folder=False)  # or it would be closed to make room
except OSError as error:
    assert error.errno == errno.ENFILE, error
else:
    raise SystemExit("no end")
with open("/dev/null"):  # there is something left for the program
    pass
mine = []
try:
    while True:
        mine.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE, error
assert len(export.readdir(folder, 0)) > 200
assert export.getlock(node, Lock(True, 0, None, 1, b""), holder) is None
"""


def test_one_guest_does_not_take_every_descriptor(root: Path) -> None:
    """Also, an open folder can be listed and a lock that is held be asked for when the program has taken the rest."""
    for index in range(400):
        (root / f"{index}").touch()
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, os.fspath(root)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
