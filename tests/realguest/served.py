"""`pyvirtfs serve` as a process of its own, the guests that are attached to it, and what they leave behind in it."""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import hashlib
import itertools
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.realguest.machine import LEASH, GuestFiles, RealGuest, RealGuestError

READY_SECONDS = 30
STOP_SECONDS = 10
GONE_SECONDS = 10  # until the server has noticed that a client is gone, and parted from all that was its
WAKEUP = "anon_inode:[eventfd]"
MAPS_LINE = re.compile(r"\S+ (?P<mode>\S{4}) \S+ \S+ (?P<inode>\d+)\s*(?P<path>.*)")


class Served:
    """A server and its guests.

    A context manager: at the end of the block its guests are ended, then it is checked that they left nothing behind,
    then the server is stopped by SIGTERM, and it is checked that it ends well. If the block fails, all are just ended.

    Args:
        files: what `provision` has made.
        exports: mount tags and the folders behind them; each is a device with a socket of its own.
        security_model: of all exports, or of each by its tag; options may follow (`mapped,fmode=0640`).
        options: for `pyvirtfs serve`.
        others: mount tags and option strings of further exports, by other drivers (`memory,size=1m`).
        prefix: a command in front of the server's own.
    """

    def __init__(
        self,
        files: GuestFiles,
        exports: Mapping[str, str | Path],
        *,
        security_model: str | Mapping[str, str] = "none",
        options: Sequence[str] = (),
        others: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.files = files
        self.folder = Path(tempfile.mkdtemp(prefix="served-", dir="/tmp"))  # short enough for the path of a socket
        self.pidfile = self.folder / "pid"
        virtfs = []
        for tag, path in exports.items():
            model = security_model if isinstance(security_model, str) else security_model[tag]
            virtfs.append(f"local,path={str(path).replace(',', ',,')},mount_tag={tag},security_model={model}")
        virtfs += [f"{written},mount_tag={tag}" for tag, written in (others or {}).items()]
        self.sockets = [self.folder / f"{number}.sock" for number in range(len(virtfs))]
        self._command = [*prefix, sys.executable, "-m", "pyvirtfs", "serve", "--pidfile", str(self.pidfile), *options]
        for export, listening in zip(virtfs, self.sockets, strict=True):
            self._command += ["-virtfs", export, "--socket", str(listening)]
        self._process: subprocess.Popen[bytes] | None = None
        self._guests = contextlib.ExitStack()
        self._before: tuple[list[str], list[str]] = ([], [])
        self.log = ""  # of a server that has ended

    # The process

    def start(self) -> Self:
        """Start the server, and return when it says that clients can connect."""
        try:
            self._start()
        except BaseException:
            self.abandon()
            raise
        return self

    def _start(self) -> None:
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as ready, contextlib.ExitStack() as stack:
            high = fcntl.fcntl(writing, fcntl.F_DUPFD, 10)  # the leash has 3 for itself
            os.close(writing)
            stack.callback(os.close, high)
            stdout, stderr = (stack.enter_context(open(self.folder / name, "wb")) for name in ("stdout", "stderr"))
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", LEASH, "leash", *self._command, "--ready-fd", str(high)],
                stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, pass_fds=[high], start_new_session=True,
            )  # fmt: skip
            deadline = time.monotonic() + READY_SECONDS
            while not select.select([ready], [], [], 0.1)[0]:
                assert self._process.poll() is None, f"the server has ended\n{self._read('stderr')}"
                assert time.monotonic() < deadline, f"not ready within {READY_SECONDS} s\n{self._read('stderr')}"
            assert ready.read(100) == b"READY\n"
        assert self.pidfile.read_text() == f"{self.pid}\n"
        streams = self._command.count("--listen")  # each has one of these, and the last that is opened is the loop's
        while self.descriptors().count("anon_inode:[eventpoll]") <= streams:
            assert time.monotonic() < deadline, f"it does not wait for clients\n{self._read('stderr')}"
            time.sleep(0.01)
        self._before = self.descriptors(), self.shared_maps()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """All that the server has logged."""
        return self._read("stderr") if self.folder.exists() else self.log

    def kill(self) -> None:
        """SIGKILL for the server; returns when it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """SIGTERM, and see that the server ends as it should."""
        assert self._process is not None
        assert self.running, f"the server has ended with status {self._process.returncode}\n{self.stderr}"
        self._process.terminate()
        status = self._process.wait(STOP_SECONDS)
        assert status == 0, f"exit status {status}\n{self.stderr}"
        assert not self.pidfile.exists()
        assert not [path for path in self.sockets if path.exists()]
        self.check_log()

    def check_log(self) -> None:
        """No exception has been logged, and no bug."""
        assert not re.search(r"Traceback|\bbug\b|: error: |Exception ignored", self.stderr), self.stderr

    def abandon(self) -> None:
        """End everything that still runs, and remove the folder with sockets and logs."""
        try:
            self._guests.close()
        finally:
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # the leash with it
                self._process.wait(STOP_SECONDS)
                assert self._process.stdin is not None
                self._process.stdin.close()
            if self.folder.exists():
                self.log = self._read("stderr") if (self.folder / "stderr").exists() else ""
                shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._guests.close()
            if kind is None and self.running:
                self.check_nothing_left()
                self.stop()
        finally:
            self.abandon()

    # Its guests

    def arguments(self) -> list[str]:
        """What the server says that QEMU needs for its devices."""
        words = shlex.split(self._read("stdout"))
        devices = [value for option, value in itertools.pairwise(words) if option == "-device"]
        assert len(devices) == len(self.sockets), words
        return [word for device in devices for word in ("-device", device)]

    def boot(
        self,
        *arguments: str,
        machine: str = "pc",
        memory: str = "512M",
        shared: bool = True,
        devices: Sequence[str] | None = None,
        **options: Any,
    ) -> RealGuest:
        """A guest with all devices, ready. It ends with the server, unless before.

        Args:
            arguments: for QEMU, in front of those of the devices.
            machine: see `RealGuest`.
            memory: see `RealGuest`.
            shared: whether QEMU gives the server its RAM; else data go through the socket.
            devices: QEMU's arguments for the devices, instead of those that the server says.
            options: see `RealGuest`.
        """
        ram = ["-object", f"memory-backend-memfd,id=mem,size={memory},share=on"] if shared else []
        attached = [*ram, *arguments, *(self.arguments() if devices is None else devices)]
        machine = f"{machine},memory-backend=mem" if shared else machine
        guest = RealGuest(self.files, attached, machine=machine, memory=memory, **options)
        return self._guests.enter_context(guest)

    # What the server holds

    def descriptors(self) -> list[str]:
        """What the server's open descriptors are."""
        found = []
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(path))
        return sorted(found)

    def shared_maps(self) -> list[str]:
        """The files that the server has mapped with sharing: guest RAM above all."""
        found = []
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            match = MAPS_LINE.fullmatch(line)
            assert match is not None, line
            if match["mode"].endswith("s") or match["path"].startswith("/memfd:"):
                found.append(match["path"])
        return sorted(found)

    def guest_ram(self) -> list[str]:
        """Those mappings that were not there before there was a guest."""
        return [path for path in self.shared_maps() if path not in self._before[1]]

    def check_nothing_left(self) -> None:
        """The server holds what it held before its first guest came; to be called when the last one is gone.

        A device that has ever answered a request later keeps what it wakes itself with.
        """
        deadline = time.monotonic() + GONE_SECONDS
        while True:
            descriptors, maps = self.descriptors(), self.shared_maps()
            kept = min(descriptors.count(WAKEUP) - self._before[0].count(WAKEUP), len(self.sockets))
            expected = sorted([*self._before[0], *[WAKEUP] * kept]), self._before[1]
            if (descriptors, maps) == expected or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        assert (descriptors, maps) == expected


def mount(guest: RealGuest, tag: str = "test_mount", at: str = "/mnt", options: str = "msize=131072") -> None:
    """Mount an export in a guest."""
    guest.check(f"mkdir -p {at} && mount -t 9p -o trans=virtio,version=9p2000.L,{options} {tag} {at}")


def interrupts(guest: RealGuest, device: str = "virtio0") -> dict[str, tuple[int, str]]:
    """How often each interrupt of a device has come, on all processors, and of what kind it is."""
    heads, *lines = guest.check("cat /proc/interrupts").splitlines()
    processors = len(heads.split())
    found = {}
    for line in lines:
        words = line.split()
        if words[-1].partition("-")[0] == device:
            found[words[-1]] = (sum(map(int, words[1 : 1 + processors])), words[1 + processors])
    return found


def demonstrate(guest: RealGuest, export: Path) -> None:
    """What VirtFS is known by, word for word."""
    (export / "virtfs_file").write_text("Hi Guest\n")
    tags = guest.check("cat /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag")
    assert tags.rstrip("\n\0") == "test_mount"
    guest.check("mkdir -p /mnt && mount -t 9p -o trans=virtio test_mount /mnt")
    line = guest.check("mount | grep test_mount")
    assert re.fullmatch(r"test_mount on /mnt type 9p \(rw,\S*trans=virtio\)\n", line), line
    assert guest.check("cat /mnt/virtfs_file") == "Hi Guest\n"
    guest.check("echo 'Hi Host' >/mnt/from_guest")
    assert (export / "from_guest").read_bytes() == b"Hi Host\n"


@contextlib.contextmanager
def mounted(guest: RealGuest, options: str = "msize=131072") -> Iterator[None]:
    """Inside of the block the export `test_mount` is mounted at /mnt; after it, everything of it has been closed."""
    mount(guest, options=options)
    try:
        yield
    except BaseException:
        with contextlib.suppress(RealGuestError):  # the next test may do better
            guest.run("umount -l /mnt")
        raise
    guest.check("umount /mnt")


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two trees: names, kinds, modes, times of files in seconds, contents."""

    def facts(path: Path) -> tuple[int, int]:
        status = path.lstat()
        return status.st_mode, 0 if path.is_dir() else int(status.st_mtime)

    found = []
    for name in sorted({path.relative_to(tree) for tree in (one, other) for path in tree.rglob("*")}):
        first, second = one / name, other / name
        if not os.path.lexists(first) or not os.path.lexists(second):
            found.append(f"{name}: only in one")
        elif facts(first) != facts(second):
            found.append(f"{name}: {facts(first)}, {facts(second)}")
        elif first.is_symlink():
            found += [f"{name}: target"] * (os.readlink(first) != os.readlink(second))
        elif first.is_file() and not filecmp.cmp(first, second, shallow=False):
            found.append(f"{name}: content")
    return found


def python(guest: RealGuest, folder: Path, source: str, timeout: float = 60) -> str:
    """Run a Python program of the guest, in the folder."""
    return guest.python(f"import os\nos.chdir('/mnt/{folder.name}')\n{textwrap.dedent(source)}", timeout)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
