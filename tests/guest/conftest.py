"""A device whose registers lie, an export, and a tree that exists twice."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from pyvirtfs.guest import DirectMachine, FoundFunction, GuestPath, Machine
from pyvirtfs.guest.registers import fields_of
from pyvirtfs.memory import GuestMemory
from pyvirtfs.testing import Pair, pair
from pyvirtfs.virtio.layout import CommonConfig
from pyvirtfs.virtio9p import Virtio9pPci


class Lies:
    """A device behind which some common configuration registers read as something else."""

    def __init__(self, device: Virtio9pPci) -> None:
        self._device = device
        self.registers: dict[str, Callable[[int], int]] = {}
        """By name: what a value read becomes."""
        self.config_read = device.config_read
        self.config_write = device.config_write
        self.bar_write = device.bar_write
        self.run_pending = device.run_pending
        self.next_deadline = device.next_deadline
        self.wakeup_fileno = device.wakeup_fileno
        self._names = {field.offset: name for name, field in fields_of(CommonConfig).items()}

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        value = self._device.bar_read(bar, offset, size)
        change = self.registers.get(self._names.get(offset, "")) if bar == 4 else None
        return value if change is None else change(value)


class Bench:
    """A machine with one device that may lie, and nothing brought up."""

    def __init__(self, machine: DirectMachine, device: Virtio9pPci, lies: Lies, function: FoundFunction) -> None:
        self.machine = machine
        self.device = device
        self.lies = lies.registers
        self.function = function


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "file").write_text("Hi Guest")
    return folder


@pytest.fixture
def bench(export: Path) -> Iterator[Bench]:
    memory = GuestMemory.anonymous(64 << 20)
    machine = DirectMachine(memory)
    options = f"local,path={export},security_model=none"
    with Virtio9pPci(options, mount_tag="tag", memory=memory, interrupts=machine.pin) as device:
        lies = Lies(device)
        yield Bench(machine, device, lies, machine.attach(lies))


@pytest.fixture
def machine(export: Path) -> Iterator[Machine]:
    memory = GuestMemory.anonymous(64 << 20)
    machine = Machine(memory)
    with Virtio9pPci(f"local,path={export},security_model=none", mount_tag="tag", memory=memory) as device:
        machine.plug(device, 4)
        yield machine


class Twins:
    """The same tree twice: below a mount, and in a folder of the host."""

    def __init__(self, guest: GuestPath, host: Path, served: Path) -> None:
        self.guest = guest
        self.host = host
        self.served = served
        """The folder that the guest sees."""

    def ask(self, act: Callable[[Any], Any]) -> Any:
        """Do the same with both; results and errors must be equal. Returns the plain result."""
        outcomes = [_outcome(act, base) for base in (self.guest, self.host)]
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def check(self, act: Callable[[Any], Any]) -> Any:
        """As `ask`, and the trees must be equal afterwards."""
        outcome = self.ask(act)
        assert _tree(self.served) == _tree(self.host)
        return outcome


def _outcome(act: Callable[[Any], Any], base: GuestPath | Path) -> Any:
    try:
        return _plain(act(base), base)
    except OSError as error:
        return type(error), error.errno, *(_inside(name, base) for name in (error.filename, error.filename2))
    except (ValueError, TypeError, NotImplementedError) as error:
        return type(error)


def _inside(name: Any, base: GuestPath | Path) -> Any:
    if isinstance(name, GuestPath | PurePosixPath):
        name = bytes(name)
    return None if name is None else os.fsencode(name).removeprefix(bytes(base))


def _plain(value: Any, base: GuestPath | Path) -> Any:
    """A result without what must differ: where the tree lies, the numbers of inodes, the order of listings."""
    if isinstance(value, GuestPath | PurePosixPath):
        return bytes(value).removeprefix(bytes(base))
    if isinstance(value, os.stat_result):
        return value.st_mode, value.st_nlink, value.st_uid, value.st_gid, value.st_rdev
    if isinstance(value, Iterator):
        return sorted(_plain(item, base) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item, base) for item in value]
    return value


def _tree(top: Path) -> dict[bytes, Any]:
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: Any = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        found[bytes(path.relative_to(top))] = (status.st_mode, status.st_nlink, status.st_rdev, content)
    return found


def _grow(top: Path) -> None:
    """A tree with something of everything."""
    for name in ("full/deep/deeper", "empty", "Ünï", ".hidden", os.fsdecode(b"not\xffutf")):
        (top / name).mkdir(parents=True)
    for name in ("file.txt", "full/a.txt", "full/deep/b.tar.gz", "full/deep/deeper/c", ".hidden/.rc", "Ünï/é.txt"):
        (top / name).write_text(f"content of {name}")
    (top / os.fsdecode(b"not\xffutf") / os.fsdecode(b"\xfe.txt")).write_bytes(b"\xfe")
    for name, target in {
        "to_file": "file.txt",
        "to_folder": "full/deep",
        "full/up": "../empty",
        "chain": "to_folder/../up",
        "dangling": "empty/new",
        "nowhere": "no/where",
        "loop": "loop",
        "full/around": "../full",
        "to_bytes": os.fsdecode(b"not\xffutf"),
    }.items():
        (top / name).symlink_to(target)
    (top / "hard").hardlink_to(top / "file.txt")
    os.mkfifo(top / "fifo")
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, Path]]:
    """A mount of a folder in which twins grow up, one pair after the other."""
    served = tmp_path_factory.mktemp("served")
    with pair(f"local,path={served},security_model=none") as both:
        both.mount.umask = os.umask(0)
        os.umask(both.mount.umask)
        yield both, served


@pytest.fixture
def twins(nursery: tuple[Pair, Path], tmp_path: Path) -> Iterator[Twins]:
    yield from _twins(*nursery, tmp_path)


@pytest.fixture(scope="module")
def still_twins(nursery: tuple[Pair, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """For tests that change nothing."""
    yield from _twins(*nursery, tmp_path_factory.mktemp("still"))


def _twins(both: Pair, served: Path, folder: Path) -> Iterator[Twins]:
    name = f"{len(list(served.iterdir()))}/top"
    for top in (folder / "top", served / name):
        top.mkdir(parents=True)
        _grow(top)
    yield Twins(both.mount.path(name), folder / "top", served / name)
    assert both.session.client.fids == {both.mount.root_fid}, "a fid is lost"
