from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from pyvirtfs.cli.devices import DeviceSettings
from pyvirtfs.cli.interruption import Interruption
from pyvirtfs.cli.session import Guest, guest_with
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.options import FsdevOptions

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def ctrl_c() -> None:
    """A signal to this very thread: its handler has run when this returns."""
    signal.raise_signal(signal.SIGINT)


def test_the_first_waits_and_the_second_does_not() -> None:
    interruption = Interruption()
    reached = []

    def once() -> None:
        with interruption.deferred():
            ctrl_c()
            reached.append("in between")
            interruption.check()
            reached.append("too far")

    def twice() -> None:
        with interruption.deferred():
            ctrl_c()
            reached.append("once more")
            ctrl_c()
            reached.append("too far")

    states = []
    for act in (once, twice):
        with pytest.raises(KeyboardInterrupt):
            act()
        states.append(interruption.broken)
    assert states == [False, True]
    assert reached == ["in between", "once more"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_lost_at_the_end_and_nothing_left_for_the_next() -> None:
    interruption = Interruption()
    with pytest.raises(KeyboardInterrupt), interruption.deferred():
        ctrl_c()
    with contextlib.suppress(ZeroDivisionError), interruption.deferred():
        ctrl_c()
        raise ZeroDivisionError
    with interruption.deferred():
        interruption.check()


def test_what_the_host_keeps_waiting_is_interrupted_at_once() -> None:
    interruption = Interruption()
    with interruption.deferred():
        with pytest.raises(KeyboardInterrupt), interruption.at_once():
            ctrl_c()
        assert not interruption.broken
        ctrl_c()
        with pytest.raises(KeyboardInterrupt), interruption.at_once():
            pytest.fail("a signal from before was forgotten")


def test_a_signal_that_is_ignored_or_taken_stays_so() -> None:
    interruption = Interruption()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.deferred():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere() -> None:
        with interruption.deferred():
            done.append(signal.getsignal(signal.SIGINT))

    done: list[object] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [before]


@pytest.fixture
def guest(export: Path) -> Iterator[Guest]:
    fsdev = FsdevOptions("local", None, {"path": str(export), "security_model": "none"})
    with guest_with(DeviceSettings(fsdev=fsdev, mount_tag="tag", slot=6)) as guest:
        yield guest


def test_between_two_messages_nothing_breaks(guest: Guest, export: Path) -> None:
    """However late Ctrl-C comes, what was open is closed, and the mount works on."""
    interruption = Interruption()
    channel = guest.bring_up(interruption.check)
    mounted = guest.mount(channel)
    (export / "file").write_bytes(b"x" * 10000)
    idle = len(os.listdir("/proc/self/fd"))
    interrupted = 0
    for nth in range(20):
        sent = 0

        def trace(line: str, nth: int = nth) -> None:
            nonlocal sent
            sent += line.startswith("T")
            if sent == nth + 1 and line.startswith("T"):
                ctrl_c()

        guest.set_trace(trace)
        try:
            with interruption.deferred():
                mounted.path("file").read_bytes()
                mounted.path("file").stat()
        except KeyboardInterrupt:
            interrupted += 1
        guest.set_trace(None)
        assert len(os.listdir("/proc/self/fd")) == idle
        assert mounted.path("file").read_bytes() == b"x" * 10000
    assert 8 <= interrupted < 20
    assert not interruption.broken


def test_a_new_mount_after_one_that_was_interrupted_anywhere(
    guest: Guest, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruption = Interruption()
    channel = guest.bring_up(interruption.check)
    mounted = guest.mount(channel)

    def hang(*_: object) -> None:
        ctrl_c()
        ctrl_c()

    monkeypatch.setattr(LocalDriver, "write", hang)
    with pytest.raises(KeyboardInterrupt), interruption.deferred():
        mounted.path("new").write_bytes(b"1")
    monkeypatch.undo()
    assert interruption.broken
    mounted = guest.remount(channel)
    mounted.path("new").write_bytes(b"22")
    assert (export / "new").read_bytes() == b"22"


class Terminal:
    """`pyvirtfs shell` on a terminal of its own."""

    def __init__(self, folder: Path, program: str = "") -> None:
        self.fd, inside = pty.openpty()
        lines = [
            "import fcntl, sys, termios; from pyvirtfs.cli.main import main",
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)",  # from now on Ctrl-C in there is a signal for this process
            program,
            "sys.exit(main(sys.argv[1:]))",
        ]
        export = f"local,path={folder},mount_tag=tag,security_model=none"
        self.process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(lines), "shell", "-virtfs", export],
            stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
        )  # fmt: skip
        os.close(inside)

    def read_until(self, pattern: str) -> str:
        told = b""
        deadline = time.monotonic() + 30
        while not re.search(pattern, told.decode(errors="replace")):
            assert time.monotonic() < deadline, told
            if select.select([self.fd], [], [], 0.1)[0]:
                told += os.read(self.fd, 65536)
        return told.decode()

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def finish(self) -> int:
        """End the input; the exit status."""
        self.type("\x04")
        with contextlib.suppress(OSError):  # EIO: nobody is there any more
            while os.read(self.fd, 65536):
                pass
        return self.process.wait(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_at_a_terminal(export: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Terminal(export) as terminal:
        terminal.read_until(r"/\$ $")
        terminal.type("put /dev/zero big\n")
        wait_for(lambda: (export / "big").exists() and (export / "big").stat().st_size > 0)
        terminal.type("\x03")
        assert re.search(r"big\r\n\^C\r\n/\$ $", terminal.read_until(r"\^C\s+/\$ $"))  # once, and a new line
        terminal.type(f"put {tmp_path}/fifo; touch never\n")  # nobody writes to it
        terminal.read_until(r"never\r\n")
        wait_for(lambda: "wait_for_partner" in Path(f"/proc/{terminal.process.pid}/wchan").read_text())
        terminal.type("\x03")
        terminal.read_until(r"\^C\r\n/\$ $")
        terminal.type("rm big; ls; mount\n")
        assert "\ntag on / " in terminal.read_until(r"mount\r\n(.*\n)+/\$ $")
        terminal.type("half")
        terminal.read_until("half$")
        time.sleep(0.2)  # Python notices no signal that comes just before readline waits again
        terminal.type("\x03")
        terminal.read_until(r"\^C\r\n/\$ $")
        assert terminal.finish() == 0
    assert list(export.iterdir()) == []


def test_at_a_terminal_with_a_device_that_hangs(export: Path) -> None:
    hanging = f"""
import pathlib, time
from pyvirtfs.fsdev.local import LocalDriver

real = LocalDriver.getattr

def hang(*arguments):
    if pathlib.Path({str(export)!r}, "hang").exists():
        print("hanging", flush=True)
        time.sleep(60)
    return real(*arguments)

LocalDriver.getattr = hang
"""
    with Terminal(export, hanging) as terminal:
        terminal.read_until(r"/\$ $")
        (export / "hang").touch()
        terminal.type("stat /\n")
        terminal.read_until("hanging")
        terminal.type("\x03")
        time.sleep(0.3)  # or the two would be one signal
        (export / "hang").unlink()
        terminal.type("\x03")
        terminal.read_until(r"\^C\s+/\$ $")
        terminal.type("touch new; ls\n")
        terminal.read_until(r"ls\r\nnew\r\n/\$ $")
        assert terminal.finish() == 0


@pytest.mark.parametrize("target", ["put", "get"])
def test_commands_of_an_option_end_with_130(target: str, export: Path, tmp_path: Path) -> None:
    (export / "zeros").write_bytes(b"")
    os.truncate(export / "zeros", 1 << 40)
    command, growing = {
        "put": ("put /dev/zero big", export / "big"),
        "get": (f"get zeros {tmp_path}/big", tmp_path / "big"),
    }[target]
    device = f"local,path={export},mount_tag=tag,security_model=none"
    arguments = [sys.executable, "-m", "pyvirtfs", "shell", "-virtfs", device, "-c", f"{command}; touch never"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: growing.exists() and growing.stat().st_size > 0)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"\n")  # as click has it
    assert process.returncode == 130
    assert not (export / "never").exists()
    assert growing.exists() == (target == "put")  # half a file of the host's is removed
