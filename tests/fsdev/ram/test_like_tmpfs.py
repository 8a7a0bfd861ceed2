"""The memory driver beside the local one on a tmpfs: whatever is done to both, both answer the same.

Where there is no tmpfs for it, on whatever temporary files lie; times are not compared then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from pyvirtfs.fsdev.driver import NOW, Attributes, Qid, SetAttributes
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.ram import MemoryDriver
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing.conformance.subject import Subject


def roomy() -> str | None:
    """A place for folders that is no busy disk, if it keeps extended attributes."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.setxattr(folder, "user.x", b"x")
        return "/dev/shm"
    return None


PLACE = roomy()
NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"\xff\n", b"x" * 255, b"y" * 256])
STEPS = st.lists(st.sampled_from([b"a", b"b", b"c", b".", b".."]), max_size=4)
MODES = st.sampled_from([0o644, 0o755, 0o6755, 0o4711, 0o2755, 0o2644, 0o1777, 0o600])
OWN = os.geteuid(), os.getegid()
OWNERS = st.just(OWN) if OWN[0] else st.tuples(st.sampled_from([0, 1000]), st.sampled_from([0, 2000]))
USERS = st.sampled_from([1000] if OWN[0] else [0, 1000])  # who is not root keeps no set-id bits for root
SIZES = st.one_of(st.integers(0, 100), st.integers(65530, 65545), st.integers(0, 300_000))
NO_BYTE = (1 << 63) - 1  # from there on no file has one
OFFSETS = SIZES | st.just(NO_BYTE)
XATTRS = st.sampled_from(
    [b"user.a", b"user.b", b"user.", b"trusted.x", b"nonsense", b"user." + b"n" * 250, b"user." + b"n" * 251]
)
TIMES = st.one_of(st.none(), st.just(NOW), st.integers(-(10**9), 4 * 10**18))
DEVICES = st.sampled_from([(0, 0), (1, 3), (4095, (1 << 20) - 1), (4096, 0), (0, 1 << 20)])


def moving_times() -> tuple[str, ...]:
    """The times that move on a tmpfs as they do in the memory driver."""
    if PLACE is None:
        return ()
    usual = os.statvfs(PLACE).f_flag & (os.ST_RELATIME | os.ST_NOATIME | os.ST_NODIRATIME) == os.ST_RELATIME
    return ("atime", "mtime", "ctime") if usual else ("mtime", "ctime")


MOVING = moving_times()
CLOCK_REALTIME_COARSE = 5  # time.h


class Both(NamedTuple):
    """A handle of each driver."""

    local: Any
    memory: Any


class Refused(NamedTuple):
    """A call that failed."""

    error: str


class BothDrivers(RuleBasedStateMachine):
    nodes = Bundle("nodes")
    files = Bundle("files")

    @initialize(target=nodes)
    def attach(self) -> Both:
        self.top = tempfile.mkdtemp(dir=PLACE)
        self.local = Subject(LocalDriver(self.top, "none"))
        self.memory = Subject(MemoryDriver(mode=0o700, uid=os.geteuid(), gid=os.getegid()))
        self.paths = {self.local.root_qid.path: self.memory.root_qid.path}
        root = Both(self.local.root, self.memory.root)
        self.seen = [root]
        return root

    def teardown(self) -> None:
        if hasattr(self, "local"):
            self.compare(Both(self.local.root, self.memory.root))
            self.local.close()
            self.memory.close()
            shutil.rmtree(self.top)

    # --- asking both ---

    def times(self, side: int) -> list[list[int]]:
        """The times of each object that somebody holds, in ns."""
        export = (self.local, self.memory)[side]
        found = [export.attributes(node[side]) for node in self.seen]
        return [[getattr(a, f"{name}_sec") * 10**9 + getattr(a, f"{name}_nsec") for name in MOVING] for a in found]

    @contextlib.contextmanager
    def moves_the_same_times(self, *what: Any) -> Iterator[None]:
        """The block moves the same times of the same objects on both sides."""
        if not MOVING:
            yield
            return
        before = self.times(0), self.times(1)
        now = time.clock_gettime(CLOCK_REALTIME_COARSE)
        while time.clock_gettime(CLOCK_REALTIME_COARSE) == now:  # what a file system notes moves with the clock's ticks
            time.sleep(0.0005)
        yield
        for node, *both in zip(self.seen, *before, self.times(0), self.times(1), strict=True):
            local, memory, local_after, memory_after = both
            moved = [
                [name for name, one, other in zip(MOVING, first, second, strict=True) if one != other]
                for first, second in ((local, local_after), (memory, memory_after))
            ]
            assert moved[0] == moved[1], (what, node, self.local.attributes(node.local), moved)

    def ask(self, method: str, *arguments: Any, **options: Any) -> Both | Refused:
        """What both answer; they agree about failing, and about the times that move."""
        with self.moves_the_same_times(method, arguments, options):
            return self._ask(method, *arguments, **options)

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Both | Refused:
        answers = []
        for side, export in (("local", self.local), ("memory", self.memory)):
            mine = [getattr(each, side) if isinstance(each, Both) else each for each in arguments]
            try:
                answers.append(getattr(export, method)(*mine, **options))
            except OSError as error:
                answers.append(Refused(errno.errorcode[error.errno or 0]))
        local, memory = answers
        if isinstance(local, Refused) or isinstance(memory, Refused):
            assert local == memory, (method, arguments, options, local, memory)
            assert isinstance(memory, Refused)
            return memory
        return Both(local, memory)

    def same(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The one answer of both."""
        answer = self.ask(method, *arguments, **options)
        if isinstance(answer, Refused):
            return answer
        assert answer.local == answer.memory, (method, arguments, options)
        return answer.memory

    def made(self, answer: Both | Refused) -> None:
        """The qids of something new: from now on they belong together."""
        if isinstance(answer, Both):
            self.paths[answer.local[2]] = answer.memory[2]
            self.same_qid(answer.local, answer.memory)

    def same_qid(self, local: Qid, memory: Qid) -> None:
        assert local[0] == memory[0]
        assert local[1]
        assert memory[1]
        assert self.paths[local[2]] == memory[2]

    def compare(self, node: Both) -> None:
        """Everything below a node."""
        kind = self.look(node)
        if kind == stat.S_IFREG:
            assert self.local.content(node.local) == self.memory.content(node.memory)
        elif kind == stat.S_IFDIR:
            names = self.local.names_in(node.local)
            assert self.memory.names_in(node.memory) == names
            for name in names:
                self.compare(Both(self.local.find(name, at=node.local), self.memory.find(name, at=node.memory)))

    def look(self, node: Both) -> int:
        (local_qid, local), (memory_qid, memory) = self.local.getattr(node.local), self.memory.getattr(node.memory)
        self.same_qid(local_qid, memory_qid)
        kind = stat.S_IFMT(local.mode)
        ignored = {"ino", "blocks", "dev_major", "dev_minor", "btime_sec", "btime_nsec"}
        if kind == stat.S_IFDIR:
            ignored |= {"size"}
        for name in set(Attributes._fields) - ignored:
            mine, other = getattr(local, name), getattr(memory, name)
            if "time" in name and mine > 1_700_000_000:  # of the present
                continue
            if name.endswith("nsec"):
                continue
            if "time" in name and other > 1_700_000_000:
                raise AssertionError((name, mine, other))
            assert mine == other, (name, local, memory)
        return kind

    # --- names ---

    @rule(target=nodes, node=nodes, names=STEPS)
    def walk(self, node: Both, names: list[bytes]) -> Any:
        if b".." in names and self.local.attributes(node.local).nlink == 0:
            return multiple()
        answer = self.ask("walk", node, names)
        if isinstance(answer, Refused):
            return multiple()
        (local_qids, local), (memory_qids, memory) = answer
        assert len(local_qids) == len(memory_qids)
        for one, other in zip(local_qids, memory_qids, strict=True):
            self.same_qid(one, other)
        assert (local is None) == (memory is None)
        return multiple() if local is None else self.held(local, memory)

    def held(self, local: Any, memory: Any) -> Both:
        """A new pair of handles, watched from now on."""
        node = Both(local, memory)
        self.seen.append(node)
        return node

    @rule(node=nodes, name=NAMES, mode=MODES, owner=OWNERS)
    def mkdir(self, node: Both, name: bytes, mode: int, owner: tuple[int, int]) -> None:
        self.made(self.ask("mkdir", node, name, mode | 0o700, *owner))

    @rule(node=nodes, name=NAMES, where=st.sampled_from([b"a", b"/", b"", b"t" * 4095, b"t" * 4096]))
    def symlink(self, node: Both, name: bytes, where: bytes) -> None:
        self.made(self.ask("symlink", node, name, where, *OWN))

    @rule(
        node=nodes, name=NAMES, kind=st.sampled_from([0, 1, 4, 8, 10, 12, 15]), mode=MODES, device=DEVICES, owner=OWNERS
    )
    def mknod(
        self, node: Both, name: bytes, kind: int, mode: int, device: tuple[int, int], owner: tuple[int, int]
    ) -> None:
        self.made(self.ask("mknod", node, name, kind << 12 | mode | 0o600, *device, *owner))

    if not OWN[0]:  # which others may not make

        @rule(node=nodes, name=NAMES, kind=st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]), device=DEVICES, owner=OWNERS)
        def device(self, node: Both, name: bytes, kind: int, device: tuple[int, int], owner: tuple[int, int]) -> None:
            self.made(self.ask("mknod", node, name, kind | 0o600, *device, *owner))

    @rule(node=nodes, at=nodes, name=NAMES)
    def link(self, node: Both, at: Both, name: bytes) -> None:
        self.same("link", at, node, name)

    @rule(node=nodes)
    def readlink(self, node: Both) -> None:
        self.same("readlink", node)

    @rule(node=nodes, at=nodes, name=NAMES)
    def rename(self, node: Both, at: Both, name: bytes) -> None:
        self.same("rename", node, at, name)

    @rule(old=nodes, old_name=NAMES, new=nodes, new_name=NAMES)
    def renameat(self, old: Both, old_name: bytes, new: Both, new_name: bytes) -> None:
        self.same("renameat", old, old_name, new, new_name)

    @rule(node=nodes, name=NAMES, folder=st.booleans())
    def unlinkat(self, node: Both, name: bytes, folder: bool) -> None:
        self.same("unlinkat", node, name, folder=folder)

    @rule(node=nodes)
    def remove(self, node: Both) -> None:
        self.same("remove", node)

    @rule(node=nodes)
    def listing(self, node: Both) -> None:
        if stat.S_ISDIR(self.local.attributes(node.local).mode):
            with self.moves_the_same_times("entries", node):
                local, memory = self.local.entries(node.local), self.memory.entries(node.memory)
            assert sorted((e.name, e.type) for e in local) == sorted((e.name, e.type) for e in memory)

    # --- attributes ---

    @rule(node=nodes)
    def getattr(self, node: Both) -> None:
        self.look(node)

    @rule(
        node=nodes,
        mode=st.none() | MODES,
        size=st.none() | SIZES | st.sampled_from([1 << 63, -1]),
        atime=TIMES,
        mtime=TIMES,
        owner=st.none() | OWNERS,
        touch=st.booleans(),
        uid=USERS,
    )
    def setattr(
        self,
        node: Both,
        mode: int | None,
        size: int | None,
        atime: int | None,
        mtime: int | None,
        owner: tuple[int, int] | None,
        touch: bool,
        uid: int,
    ) -> None:
        if mode is not None and stat.S_ISDIR(self.local.attributes(node.local).mode):
            mode |= 0o700
        changes = SetAttributes(mode=mode, size=size, atime_ns=atime, mtime_ns=mtime, touch_ctime=touch)
        if owner is not None:
            changes = changes._replace(uid=owner[0], gid=owner[1])
        self.same("setattr", node, changes, uid)

    @rule(node=nodes, name=XATTRS, value=st.binary(max_size=20) | st.just(bytes(65537)), flags=st.integers(0, 4))
    def setxattr(self, node: Both, name: bytes, value: bytes, flags: int) -> None:
        self.same("setxattr", node, name, value, flags, 0)

    @rule(node=nodes, name=XATTRS)
    def getxattr(self, node: Both, name: bytes) -> None:
        self.same("getxattr", node, name)

    @rule(node=nodes, name=XATTRS)
    def removexattr(self, node: Both, name: bytes) -> None:
        self.same("removexattr", node, name, 0)

    @rule(node=nodes)
    def listxattr(self, node: Both) -> None:
        local, memory = self.local.listxattr(node.local), self.memory.listxattr(node.memory)
        assert sorted(local.split(b"\0")) == sorted(memory.split(b"\0"))

    # --- content ---

    FLAGS = st.sampled_from(
        [
            os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC,
            os.O_WRONLY | os.O_APPEND, os.O_DIRECTORY, os.O_ACCMODE, os.O_RDONLY | os.O_NOATIME,
        ]
    )  # fmt: skip

    @rule(target=files, node=nodes, flags=FLAGS, uid=USERS)
    def open(self, node: Both, flags: int, uid: int) -> Any:
        if stat.S_ISDIR(self.local.attributes(node.local).mode):
            flags &= ~os.O_NOATIME  # the server opens folders without, and the local driver does
        answer = self.ask("open", node, flags, uid)
        if isinstance(answer, Refused):
            return multiple()
        self.same_qid(answer.local[1], answer.memory[1])
        return Both(answer.local[0], answer.memory[0])

    @rule(target=nodes, node=nodes, name=NAMES, flags=FLAGS, exclusive=st.booleans(), mode=MODES, owner=OWNERS)
    def create(self, node: Both, name: bytes, flags: int, exclusive: bool, mode: int, owner: tuple[int, int]) -> Any:
        flags = flags & ~os.O_DIRECTORY | (os.O_EXCL if exclusive else 0)
        new = not self.exists(node, name)
        answer = self.ask("create", node, name, flags, mode | 0o600, *owner)
        if isinstance(answer, Refused):
            return multiple()
        (local, local_file, local_qid), (memory, memory_file, memory_qid) = answer
        if new:
            self.paths[local_qid[2]] = memory_qid[2]
        self.same_qid(local_qid, memory_qid)
        self.local.close_file(local_file)
        self.memory.close_file(memory_file)
        return self.held(local, memory)

    def exists(self, node: Both, name: bytes) -> bool:
        with contextlib.suppress(OSError):
            self.local.release(self.local.walk(node.local, [name]).node)
            return True
        return False

    @rule(file=files, offset=OFFSETS, nbytes=SIZES)
    def read(self, file: Both, offset: int, nbytes: int) -> None:
        one, other = bytearray(nbytes + 1), bytearray(nbytes + 1)  # of no bytes the local driver asks nobody
        self.same("read", file, offset, Both(ViewBuffers.of(one), ViewBuffers.of(other)))
        assert one == other

    @rule(file=files, offset=OFFSETS, data=st.binary(max_size=300) | SIZES.map(lambda size: b"z" * (size + 1)))
    def write(self, file: Both, offset: int, data: bytes) -> None:
        if file.local.clears_set_ids and offset == NO_BYTE:
            return  # the local driver clears them before it tries
        self.same("write", file, offset, ViewBuffers.of(data))

    @rule(file=files)
    def entries(self, file: Both) -> None:
        answer = self.ask("readdir", file, 0)
        if isinstance(answer, Both):
            local, memory = (
                list(each.batches(mine)) for each, mine in zip((self.local, self.memory), file, strict=True)
            )
            assert {e.name for e in local} == {e.name for e in memory}

    # --- what seldom meets by chance ---

    @rule(node=nodes, flags=FLAGS, uid=USERS, mode=st.none() | MODES, data=st.sampled_from([b"", b"data"]))
    def open_and_use(self, node: Both, flags: int, uid: int, mode: int | None, data: bytes) -> None:
        new = not self.exists(node, b"a")
        made = self.ask("create", node, b"a", os.O_RDWR, 0o600, *OWN)
        if isinstance(made, Refused):
            return
        if new:
            self.paths[made.local[2][2]] = made.memory[2][2]
        self.same("close_file", Both(made.local[1], made.memory[1]))
        node = self.held(made.local[0], made.memory[0])
        file = self.ask("open", node, flags & ~os.O_DIRECTORY, uid)
        assert isinstance(file, Both)
        file = Both(file.local[0], file.memory[0])
        self.same("write", file, 0, ViewBuffers.of(data))
        self.read(file, 0, 10)
        if mode is not None:
            self.same("setattr", node, SetAttributes(mode=mode), 0)
            self.read(file, 0, 10)
        self.same("close_file", file)

    @rule(node=nodes, name=NAMES, mode=st.sampled_from([0o2755, 0o6755, 0o2744]), owner=OWNERS)
    def make_in_a_shared_folder(self, node: Both, name: bytes, mode: int, owner: tuple[int, int]) -> None:
        folder = self.ask("mkdir", node, name, 0o2777, *OWN)
        self.made(folder)
        if isinstance(folder, Refused):
            return
        walked = self.ask("walk", node, [name])
        assert isinstance(walked, Both)
        shared = self.held(walked.local[1], walked.memory[1])
        for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            self.made(self.ask("mknod", shared, b"%d" % kind, kind | mode, 0, 0, *owner))
        file = self.ask("create", shared, b"file", os.O_RDWR, mode, *owner)
        assert isinstance(file, Both)
        self.paths[file.local[2][2]] = file.memory[2][2]
        self.same("close_file", Both(file.local[1], file.memory[1]))
        self.compare(shared)

    @rule(file=files)
    def fsync(self, file: Both) -> None:
        self.same("fsync", file, datasync=True)

    @rule(file=consumes(files))
    def close_file(self, file: Both) -> None:
        self.same("close_file", file)


@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_both_drivers(examples: int) -> None:
    run_state_machine_as_test(
        BothDrivers,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.reuse, Phase.generate],  # shrinking would take minutes: each step waits for a tick
        ),
    )
