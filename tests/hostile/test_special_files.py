"""FIFOs, sockets, devices, and odd files (H150 to H153). Opening the wrong one blocks: hence the time limits."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import check_descriptors, open_descriptors
from tests.hostile.older import DIALECTS, Older
from tests.hostile.stack import IS_ROOT, MODEL, Place, Stack, as_root, running, sizes, snapshot

Start: TypeAlias = Callable[..., Stack]
pytestmark = pytest.mark.timeout(30)

KINDS = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "char": stat.S_IFCHR, "block": stat.S_IFBLK}
FLAGS = [
    c.DOTL_RDONLY, c.DOTL_WRONLY, c.DOTL_RDWR, c.DOTL_RDWR | c.DOTL_TRUNC, c.DOTL_WRONLY | c.DOTL_APPEND,
    c.DOTL_NONBLOCK, c.DOTL_RDWR | c.DOTL_NONBLOCK, c.DOTL_CREATE, c.DOTL_CREATE | c.DOTL_EXCL, c.DOTL_NOFOLLOW,
    c.DOTL_DIRECT, c.DOTL_SYNC | c.DOTL_DSYNC, c.DOTL_NOATIME, c.DOTL_CLOEXEC, 0xFFFFFFFC,
]  # fmt: skip


def make(path: Path, kind: str) -> None:
    """A special file of the host; for devices, ones that harm nothing: the null device, and no block device at all."""
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.fspath(path))
    else:
        if kind in {"char", "block"} and not IS_ROOT:
            pytest.skip("needs root: makes a device node")
        os.mknod(path, KINDS[kind] | 0o666, os.makedev(1, 3) if kind == "char" else os.makedev(0x1FF, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_h150_special_files_are_not_opened(stack: Stack, place: Place, kind: str) -> None:
    make(place.export / "folder" / "special", kind)
    before, tree = open_descriptors(), snapshot(place.export)
    for flags in FLAGS:
        fid = stack.fid(b"folder", b"special")
        assert stack.errno("Tlopen", fid=fid, flags=flags) == errno.ENXIO, oct(flags)
        folder = stack.fid(b"folder")
        expected = errno.EEXIST if flags & c.DOTL_EXCL else errno.ENXIO
        assert stack.errno("Tlcreate", fid=folder, name=b"special", flags=flags | c.DOTL_CREATE) == expected
        for name in ("Tread", "Twrite", "Tfsync", "Treaddir"):
            assert stack.errno(name, fid=fid) == errno.EINVAL
        assert stack.errno("Tsetattr", fid=fid, valid=c.SETATTR_SIZE) == errno.EINVAL
        stack.clunk(fid, folder)
    assert open_descriptors() == before
    assert snapshot(place.export) == tree
    fid = stack.fid(b"folder", b"special")
    found = stack.do("Tgetattr", fid=fid)
    assert stat.S_IFMT(found["mode"]) == KINDS[kind]
    assert stack.errno("Tlock", fid=fid) in {0, errno.ENXIO, errno.EINVAL, errno.EBADF}
    assert stack.errno("Txattrwalk", fid=fid, newfid=stack.new()) in {0, errno.EOPNOTSUPP}
    stack.do("Tsetattr", fid=fid, valid=c.SETATTR_MODE, mode=0o600)
    stack.do("Trename", fid=fid, name=b"moved")
    stack.do("Tremove", fid=fid)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_h150_a_special_export_or_one_in_it(start: Start, place: Place, kind: str) -> None:
    """A folder below, with nothing but those."""
    for i in range(20):
        make(place.export / "folder" / f"{i}", kind)
    stack = start()
    listing = stack.opened(b"folder", flags=0)
    assert len(stack.listing(listing)) == 23
    for i in range(20):
        assert stack.errno("Tlopen", fid=stack.fid(b"folder", b"%d" % i)) == errno.ENXIO


# --- between check and open ---


@pytest.mark.parametrize("instead", ["fifo", "socket", "link to a fifo", "char"])
def test_h151_replaced_between_walk_and_open(stack: Stack, place: Place, instead: str) -> None:
    path = place.export / "file"
    for flags in (0, c.DOTL_RDWR, c.DOTL_RDWR | c.DOTL_APPEND):
        fid = stack.fid(b"file")
        path.rename(place.export / "kept")
        if instead == "link to a fifo":
            os.mkfifo(place.export / "pipe")
            path.symlink_to("pipe")
        else:
            make(path, instead)
        stack.do("Tlopen", fid=fid, flags=flags)  # what was found
        assert stack.read(fid) == b"Hi Guest"
        assert stack.errno("Tlopen", fid=stack.fid(b"file"), flags=flags) == errno.ENXIO
        made = stack.errno("Tlcreate", fid=stack.fid(), name=b"file", flags=flags | c.DOTL_CREATE)
        assert made in {errno.ENXIO, errno.ELOOP}
        path.unlink()
        (place.export / "pipe").unlink(missing_ok=True)
        (place.export / "kept").rename(path)


@pytest.mark.parametrize("call", ["open", "stat"])
def test_h151_replaced_just_before_a_system_call(
    stack: Stack, place: Place, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """At each call of the host's open or stat in turn, the file becomes a FIFO."""
    path, real = place.export / "file", getattr(os, call)
    for number in range(8):
        for request in ("Tlopen", "Tlcreate", "Twalk"):
            fid = stack.fid(b"file") if request == "Tlopen" else stack.fid()
            left = [number]

            def swapped(*arguments: Any, left: list[int] = left, **options: Any) -> Any:
                if left[0] == 0:
                    os.rename(path, place.export / "kept")
                    os.mkfifo(path)
                left[0] -= 1
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, swapped)
                fields: dict[str, dict[str, Any]] = {
                    "Tlopen": {"flags": c.DOTL_RDWR},
                    "Tlcreate": {"name": b"file"},
                    "Twalk": {"newfid": stack.new(), "wnames": [b"file"]},
                }
                assert stack.errno(request, fid=fid, **fields[request]) in {0, errno.ENXIO, errno.ESTALE, errno.ENOENT}
            if stack.device.server._session.table[fid].file is not None:
                assert stack.read(fid) == b"Hi Guest"
            if (place.export / "kept").exists():
                path.unlink()
                (place.export / "kept").rename(path)


@sizes(400, 20_000)
def test_h151_replaced_all_the_time(stack: Stack, place: Place, count: int) -> None:
    """400 rounds (20,000) against a thread that makes the file a FIFO and a file again."""
    path, kept, pipe = place.export / "file", place.export / "kept", place.export / "pipe"
    os.mkfifo(pipe)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            os.rename(path, kept)
            os.rename(pipe, path)
            os.rename(path, pipe)
            os.rename(kept, path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for i in range(count):
            fid = stack.new()
            if i % 2:
                if stack.errno("Twalk", newfid=fid, wnames=[b"file"]) == errno.ENOENT:
                    continue
                error = stack.errno("Tlopen", fid=fid, flags=c.DOTL_RDWR)
                assert error in {0, errno.ENXIO}
            else:
                stack.do("Twalk", newfid=fid)
                error = stack.errno("Tlcreate", fid=fid, name=b"file", flags=c.DOTL_RDWR | c.DOTL_CREATE)
                assert error in {0, errno.ENXIO, errno.ESTALE}
            if not error:
                assert stack.read(fid) in {b"Hi Guest", b""}  # empty: made anew while there was none
            stack.clunk(fid)
    finally:
        stop.set()
        thread.join()
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


# --- device nodes ---


@as_root
@pytest.mark.parametrize("kind", ["char", "block"])
def test_h152_a_device_node_is_made_and_never_opened(stack: Stack, place: Place, kind: str) -> None:
    """In passthrough, by a process that may: as mknod(2)."""
    stack.do("Tmknod", mode=KINDS[kind] | 0o666, major=1, minor=3)
    made = (place.export / "new").lstat()
    assert (made.st_mode, made.st_rdev) == (KINDS[kind] | 0o666, os.makedev(1, 3))
    for flags in FLAGS:
        assert stack.errno("Tlopen", fid=stack.fid(b"new"), flags=flags) == errno.ENXIO
    assert stack.errno("Tlcreate", fid=stack.fid(), name=b"new") == errno.ENXIO
    found = stack.do("Tgetattr", fid=stack.fid(b"new"))
    assert found["rdev"] == 1 << 8 | 3
    for major, minor in ((1 << 12, 0), (0, 1 << 20), (2**32 - 1, 2**32 - 1)):
        assert stack.errno("Tmknod", name=b"other", mode=KINDS[kind], major=major, minor=minor) == errno.EINVAL
    assert not (place.export / "other").exists()


def test_h152_a_process_that_may_not_makes_none(stack: Stack, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if IS_ROOT:
        real = os.mknod

        def refused(name: Any, mode: int = 0o600, device: int = 0, **options: Any) -> None:
            if stat.S_IFMT(mode) in {stat.S_IFCHR, stat.S_IFBLK}:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            real(name, mode, device, **options)

        monkeypatch.setattr(os, "mknod", refused)
    for kind in ("char", "block"):
        assert stack.errno("Tmknod", mode=KINDS[kind] | 0o666, major=1, minor=3) == errno.EPERM
        assert not (place.export / "new").exists()


@pytest.mark.parametrize("model", [*(["passthrough"] if IS_ROOT else []), "none", "mapped-xattr", "mapped-file"])
def test_h152_an_export_that_refuses_device_nodes(start: Start, place: Place, model: str) -> None:
    """device_nodes=off: EPERM in each model and each dialect, and all else is made."""
    try:
        stack = start(f"local,path={place.export},security_model={model},device_nodes=off")
    except ConfigError as error:
        pytest.skip(str(error))
    for kind in ("char", "block"):
        for major, minor in ((1, 3), (0, 0), (2**32 - 1, 2**32 - 1)):
            assert stack.errno("Tmknod", mode=KINDS[kind] | 0o666, major=major, minor=minor) == errno.EPERM
    for number, type_ in enumerate((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)):
        stack.do("Tmknod", name=b"%d" % number, mode=type_ | 0o666)
        assert stat.S_IFMT(stack.do("Tgetattr", fid=stack.fid(b"%d" % number))["mode"]) == type_
    client = Older(stack, DIALECTS["u"])
    for device in (b"c 1 3", b"b 8 0"):
        assert client.errno("Tcreate", fid=client.fid(), perm=c.DMDEVICE | 0o666, extension=device) == errno.EPERM
    assert not (place.export / "new").exists()


@pytest.mark.parametrize("mode", [stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, 0o150000, 0o170000, 0o030000])
def test_h152_other_types_are_not_made(stack: Stack, place: Place, mode: int) -> None:
    assert stack.errno("Tmknod", mode=mode) in {errno.EINVAL, errno.EPERM}
    assert not (place.export / "new").exists()


# --- odd sizes ---


def test_h153_a_huge_sparse_file(stack: Stack, place: Place) -> None:
    path = place.export / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 43)
        file.seek((1 << 43) - 8)
        file.write(b"the end.")
    fid = stack.opened(b"huge")
    assert stack.do("Tgetattr", fid=fid)["size"] == 1 << 43
    assert stack.read(fid, 0, 100) == bytes(100)
    assert stack.read(fid, 1 << 42, 4000) == bytes(4000)
    assert stack.read(fid, (1 << 43) - 8, 100) == b"the end."
    for offset in (1 << 43, (1 << 43) + 1, 1 << 62, (1 << 63) - 101):
        assert stack.read(fid, offset, 100) == b""
    stack.do("Twrite", fid=fid, offset=1 << 41, data=b"here")
    assert stack.read(fid, (1 << 41) - 4, 12) == bytes(4) + b"here" + bytes(4)
    stack.do("Tsetattr", fid=fid, valid=c.SETATTR_SIZE, size=1 << 40)
    assert path.stat().st_size == 1 << 40


def test_h153_files_that_claim_to_be_empty() -> None:
    export = f"local,path=/proc/sys/kernel,security_model={MODEL},readonly=on"
    with check_descriptors(), running(export) as stack:
        for name in ("ostype", "osrelease", "pid_max"):
            fid = stack.opened(os.fsencode(name), flags=0)
            content = Path("/proc/sys/kernel", name).read_bytes()
            assert stack.do("Tgetattr", fid=fid)["size"] == 0
            assert stack.read(fid) == content
            assert stack.read(fid, len(content)) == b""
            assert stack.read(fid, 1 << 40) == b""


def test_h153_a_file_that_waits_for_news_does_not_block() -> None:
    """/proc/kmsg looks like a regular file; without news, reading it waits for some."""
    if not os.access("/proc/kmsg", os.R_OK) or not IS_ROOT:
        pytest.skip("needs root: reads /proc/kmsg")
    with running(f"local,path=/proc,security_model={MODEL},readonly=on") as stack:
        fid = stack.fid(b"kmsg")
        opened = stack.ask("Tlopen", fid=fid)
        assert opened.errno in {0, errno.EPERM}
        if not opened.errno:
            for _ in range(3):
                assert stack.ask("Tread", fid=fid, count=100, offset=(1 << 20)).errno in {0, errno.EAGAIN, errno.EINVAL}
