"""A driver with few descriptors against one with many: random requests, and changes by the host, give the same.

What may differ: where nothing can be closed, ENFILE; where the host has moved or removed something that was closed and
is looked up by name, ESTALE. The other driver is not asked then, so that both go on alike.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.closing import ClosedEntry, LeastRecentlyOpened
from pyvirtfs.fsdev.driver import Attributes, Lock, LockHolder, SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import LocalFile
from pyvirtfs.memory.buffers import ViewBuffers
from tests.fsdev.small_budget import handles_work

BUDGET: Final = 24
BEYOND: Final = 6
MOST_NODES: Final = 120
MOST_FILES: Final = 25
NAMES: Final = [b"n%d" % index for index in range(40)]
UID, GID = os.geteuid(), os.getegid()
IS_ROOT: Final = UID == 0
MODELS: Final = (["passthrough"] if IS_ROOT else []) + ["none", "mapped-xattr", "mapped-file"]

WEIGHTS: Final = {
    "walk": 12, "clone": 1, "clunk": 1, "getattr": 8, "mkdir": 6, "create": 8, "symlink": 1, "mknod": 1, "readlink": 1,
    "open": 3, "close": 1, "read": 5, "write": 5, "readdir": 2, "link": 2, "rename": 2, "renameat": 2, "unlinkat": 2,
    "remove": 1, "place": 1, "chmod": 1, "chown": 1, "truncate": 1, "setxattr": 1, "getxattr": 2, "lock": 1,
    "getlock": 1,
}  # fmt: skip
HOST_WEIGHT: Final = 4


class Side:
    """One of the two drivers, and what a guest holds of it, by the same numbers as of the other one."""

    def __init__(self, path: Path, model: str, budget: int) -> None:
        path.mkdir()
        self.path = path
        self.driver = LocalDriver(path, model, max_descriptors=budget)
        self.nodes: dict[int, Node] = {0: self.driver.attach(b"", 0)[0]}
        self.files: dict[int, LocalFile] = {}
        self.holders: dict[int, LockHolder] = {}

    def clunk(self, key: int) -> None:
        node = self.nodes.pop(key, None)
        if node is not None:
            holder = self.holders.pop(key, None)
            if holder is not None:
                self.driver.release_locks(node, holder)
            self.driver.release(node)

    def close(self, key: int) -> None:
        file = self.files.pop(key, None)
        if file is not None:
            self.driver.close_file(file)

    def holder(self, key: int) -> LockHolder:
        return self.holders.setdefault(key, LockHolder(1, 100))

    def listed(self, file: LocalFile) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        cookie = 0
        while entries := self.driver.readdir(file, cookie):
            found += [(entry[3], entry[2]) for entry in entries]
            cookie = entries[-1][1]
        return sorted(found)

    def snapshot(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for folder, folders, files in os.walk(self.path):
            for name in folders + files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                content = Path(path).read_bytes() if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else b""
                links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
                found[os.path.relpath(path, self.path)] = status.st_mode, links, status.st_uid, content
        return found


def shown(attributes: Attributes) -> tuple[int, ...]:
    """What must be the same on both sides."""
    size = 0 if stat.S_ISDIR(attributes.mode) else attributes.size
    return (
        attributes.mode, attributes.uid, attributes.gid, attributes.nlink, size,
        attributes.rdev_major, attributes.rdev_minor,
    )  # fmt: skip


class Twins:
    """Both sides, and the next request."""

    def __init__(self, place: Path, model: str, seed: int, *, host: bool) -> None:
        self.small = Side(place / "small", model, BUDGET)
        self.big = Side(place / "big", model, 10_000)
        self.sides = (self.small, self.big)
        self.place = place
        self.rng = random.Random(seed)
        self.host_changes = host
        self.last = 0
        self.refused = 0
        self.closed = 0
        self.history: list[object] = []

    def step(self) -> None:
        rng = self.rng
        weights = {**WEIGHTS, **({"host": HOST_WEIGHT} if self.host_changes else {})}
        (what,) = rng.choices(list(weights), list(weights.values()))
        at, other = rng.choice(list(self.small.nodes)), rng.choice(list(self.small.nodes))
        file = rng.choice(list(self.small.files)) if self.small.files else None
        name, new_name = rng.choice(NAMES), rng.choice(NAMES)
        self.last += 1
        self.closed += isinstance(self.small.nodes[at].entry, ClosedEntry)
        self.history.append((what, at, other, file, name, new_name))
        if what == "host":
            self.change_by_host(rng.choice(HOST_CHANGES), name, new_name)
        elif what == "clunk":
            self.clunk(at)
        elif what == "close":
            self.close(file)
        else:
            request = self.request(what, at, other, file, name, new_name)
            if request is not None:
                self.both(request)
        self.even_out()
        table = self.small.driver._table
        assert len(table.open) + table.others <= BUDGET + BEYOND

    # --- on both sides ---

    def both(self, request: Callable[[Side], object]) -> None:
        mine = self.outcome(self.small, request)
        if mine == ("error", errno.ENFILE):
            self.refused += 1
            self.relieve()
        elif not self.host_changes or mine != ("error", errno.ESTALE):
            theirs = self.outcome(self.big, request)
            assert mine == theirs, self.history[-20:]

    @staticmethod
    def outcome(side: Side, request: Callable[[Side], object]) -> tuple[str, object]:
        try:
            return "done", request(side)
        except OSError as error:
            return "error", error.errno

    def clunk(self, key: int) -> None:
        if key:
            for side in self.sides:
                side.clunk(key)

    def close(self, key: int | None) -> None:
        if key is not None:
            for side in self.sides:
                side.close(key)

    def relieve(self) -> None:
        """Nothing could be closed: the guest gives back what may be the reason."""
        rng = self.rng
        for key in rng.sample(sorted(self.small.nodes), len(self.small.nodes) // 4):
            self.clunk(key)
        for key in rng.sample(sorted(self.small.files), (len(self.small.files) + 1) // 2):
            self.close(key)
        for key in [*self.small.holders]:
            self.clunk(key)
        for side in self.sides:  # locks of nodes that were given back otherwise
            for held in [*side.driver._pinned]:
                side.driver._unpin(*held)
            side.driver._locks._objects.clear()
            side.driver._locks._used.clear()

    def even_out(self) -> None:
        """What only one side has is given back, and what is too much."""
        for key in self.small.nodes.keys() ^ self.big.nodes.keys():
            self.clunk(key)
        for key in self.small.files.keys() ^ self.big.files.keys():
            self.close(key)
        while len(self.small.nodes) > MOST_NODES:
            self.clunk(self.rng.choice(list(self.small.nodes)))
        while len(self.small.files) > MOST_FILES:
            self.close(self.rng.choice(list(self.small.files)))

    # --- requests ---

    def request(
        self, what: str, at: int, other: int, file: int | None, name: bytes, new_name: bytes
    ) -> Callable[[Side], object] | None:
        """What to ask of either side; None: there is nothing to ask it of."""
        if what in {"read", "write", "readdir"}:
            return None if file is None else self.on_file(what, file)
        if what in {"walk", "clone", "create", "open", "place"}:
            return self.that_gives_something(what, at, name)
        if what in {"remove", "chmod"} and not at:
            return None
        rng = self.rng
        data, number = b"%d" % rng.randrange(100), rng.randrange(30)
        kind = rng.choice((stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK))
        mode = rng.choice((0o644, 0o600, 0o400, 0o444, 0o755))
        folder = rng.random() < 0.3
        lock = Lock(rng.random() < 0.5, number, number + 2, number % 4, b"")
        taken = rng.random() < 0.6

        def ask(side: Side) -> object:
            driver, node, second = side.driver, side.nodes[at], side.nodes[other]
            match what:
                case "getattr":
                    qid, attributes = driver.getattr(node)
                    return qid.type, shown(attributes)
                case "mkdir":
                    return driver.mkdir(node, name, 0o755, UID, GID).type
                case "symlink":
                    return driver.symlink(node, name, b"t" + data, UID, GID).type
                case "mknod":
                    return driver.mknod(node, name, kind | 0o640, 0, 0, UID, GID).type
                case "readlink":
                    return driver.readlink(node)
                case "link":
                    driver.link(node, second, name)
                case "rename":
                    driver.rename(node, second, name)
                case "renameat":
                    driver.renameat(node, name, second, new_name)
                case "unlinkat":
                    driver.unlinkat(node, name, folder=folder)
                case "remove":
                    driver.remove(node)
                case "chmod":  # folders stay usable
                    bits = mode | (0o700 if node.entry.kind == stat.S_IFDIR else 0)
                    driver.setattr(node, SetAttributes(mode=bits), UID)
                case "chown":
                    driver.setattr(node, SetAttributes(uid=number % 3, gid=number % 3), 0)
                case "truncate":
                    driver.setattr(node, SetAttributes(size=number), UID)
                case "setxattr":
                    driver.setxattr(node, b"user.x", data, 0, UID)
                case "getxattr":
                    return driver.getxattr(node, b"user.x")
                case "lock" if taken:
                    return driver.lock(node, lock, side.holder(at))
                case "lock":
                    driver.unlock(node, lock, side.holder(at))
                case _:
                    return driver.getlock(node, Lock(True, 0, None, 9, b""), LockHolder(2, 100)) is None
            return None

        return ask

    def on_file(self, what: str, key: int) -> Callable[[Side], object]:
        data, offset = bytearray(b"w%d." % self.rng.randrange(10**6)), self.rng.randrange(40)

        def ask(side: Side) -> object:
            file = side.files[key]
            if what == "readdir":
                return side.listed(file)
            if what == "write":
                return side.driver.write(file, offset, ViewBuffers.of(data))
            read = bytearray(200)
            return bytes(read[: side.driver.read(file, 0, ViewBuffers.of(read))])

        return ask

    def that_gives_something(self, what: str, at: int, name: bytes) -> Callable[[Side], object]:
        rng = self.rng
        key = self.last
        names = [] if what == "clone" else [rng.choice([*NAMES, b".."]) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        flags = rng.choice((os.O_RDWR, os.O_WRONLY, os.O_RDONLY, os.O_RDWR | os.O_TRUNC))
        exclusive = rng.choice((0, 0, os.O_EXCL))
        mode = rng.choice((0o644, 0o600, 0o444, 0o400, 0o4755))

        def ask(side: Side) -> object:
            driver, node = side.driver, side.nodes[at]
            found: Node | None
            match what:
                case "create":
                    found, side.files[key], qid = driver.create(node, name, flags | exclusive, mode, UID, GID)
                    answer: object = qid.type
                case "open":
                    side.files[key], qid = driver.open(node, flags, UID)
                    return qid.type
                case "place":
                    found, answer = driver.place(node)
                case _:
                    walk = driver.walk(node, names)
                    found, answer = walk.node, [qid.type for qid in walk.qids]
            if found is not None:
                side.nodes[key] = found
            return found is None, answer

        return ask

    # --- the host ---

    def change_by_host(self, change: Callable[[str, str, bytes], Any], name: bytes, new_name: bytes) -> None:
        rng = self.rng
        ends = [[os.fsdecode(rng.choice(NAMES)) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))] for _ in range(2)]
        for side in self.sides:
            path = os.path.join(side.path, *ends[0], os.fsdecode(name))
            new = os.path.join(side.path, *ends[1], os.fsdecode(new_name))
            try:
                change(path, new, b"host%d" % self.last)
            except OSError:
                continue

    # --- the end ---

    def finish(self) -> None:
        assert self.small.snapshot() == self.big.snapshot()
        for side in self.sides:
            for key in [*side.nodes]:
                side.clunk(key)
            for key in [*side.files]:
                side.close(key)
            for held in [*side.driver._pinned]:
                side.driver._unpin(*held)
            assert len(side.driver._table) == 1


def _write(path: str, _new: str, data: bytes) -> None:
    if os.path.isfile(path) or not os.path.lexists(path):
        Path(path).write_bytes(data)


def _replace(path: str, new: str, data: bytes) -> None:
    if not os.path.lexists(path):
        Path(path).write_bytes(data)
        os.rename(path, new)


HOST_CHANGES: Final[list[Callable[[str, str, bytes], Any]]] = [
    *4 * [lambda path, new, _: os.rename(path, new)],
    lambda path, _new, _: os.unlink(path),
    _write,
    _write,
    _replace,
    lambda path, new, _: os.link(path, new, follow_symlinks=False),
    lambda path, _new, _: os.mkdir(path),
    lambda path, _new, _: os.symlink("t", path),
]


def run(place: Path, model: str, seed: int, steps: int, *, host: bool) -> None:
    try:
        twins = Twins(place, model, seed, host=host)
    except ConfigError as error:
        pytest.skip(str(error))
    try:
        for _ in range(steps):
            twins.step()
        assert twins.closed > steps // 20
        assert twins.refused < steps // 100
        twins.finish()
    finally:
        for side in twins.sides:
            side.driver.close()


@pytest.fixture
def opened_by(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How objects are opened again."""
    if request.param == "names":
        monkeypatch.setattr(LeastRecentlyOpened, "_try_handles", lambda _self: False)
    elif not handles_work(tmp_path):
        pytest.skip("this process may not open by handle, or the file system has none")


@pytest.mark.usefixtures("opened_by", "no_leak")
@pytest.mark.parametrize("opened_by", ["handles", "names"], indirect=True)
@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_the_same_as_with_many_descriptors(tmp_path: Path, model: str, host: bool) -> None:
    run(tmp_path, model, 1, 2000, host=host)


@pytest.mark.slow
@pytest.mark.usefixtures("opened_by", "no_leak")
@pytest.mark.parametrize("opened_by", ["handles", "names"], indirect=True)
@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_the_same_for_long(tmp_path: Path, model: str, host: bool) -> None:
    for seed in range(2, 8):
        place = tmp_path / f"{seed}"
        place.mkdir()
        run(place, model, seed, 4000, host=host)
        shutil.rmtree(place)
