from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.vmm import qemu_program
from pyvirtfs.vmm.qemu_program import FORWARDED, Signals, check, run

Script = Callable[..., str]

FAKE = """
if [ "$1" = --version ]; then echo 'QEMU emulator version {version} (Debian 1:{version}+ds-1)'; exit; fi
{device}
"""
HAS_DEVICE = "echo 'vfio-user-pci options:'; echo '  socket=<SocketAddress> - SocketAddress'; exit"
HAS_NONE = "echo \"qemu: 'vfio-user-pci' is not a valid device model name\" >&2; exit 1"


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes a program of lines for the shell."""

    def script(lines: str, name: str = "qemu-system-x86_64") -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        return str(path)

    return script


@pytest.mark.parametrize("version", ["10.1.0", "10.1.50", "10.2.0", "11.1.3", "11.0.0-rc1"])
def test_a_qemu_that_will_do(version: str, script: Script) -> None:
    assert check(script(FAKE.format(version=version, device=HAS_DEVICE))) == version


@pytest.mark.parametrize("version", ["10.0.50", "9.2.1", "8.2.2", "2.11.1"])
def test_a_qemu_that_is_too_old(version: str, script: Script) -> None:
    program = script(FAKE.format(version=version, device=HAS_DEVICE))
    with pytest.raises(ConfigError) as caught:
        check(program)
    assert str(caught.value) == (
        f"{program}: is QEMU {version}, which has no vfio-user-pci device; install QEMU 10.1 or newer "
        "(Debian: apt-get install -t trixie-backports qemu-system-x86)"
    )


def test_a_qemu_without_the_device(script: Script) -> None:
    program = script(FAKE.format(version="11.1.3", device=HAS_NONE), "qemu-system-aarch64")
    with pytest.raises(
        ConfigError, match=r"is QEMU 11\.1\.3, made without its vfio-user-pci device; .* qemu-system-arm\)$"
    ):
        check(program)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("echo 'true 1.0'", "is not QEMU: to --version it says 'true 1.0'"),
        ("echo; echo 'what?' >&2; exit 1", r"is not QEMU: to --version it says 'what\?'"),
        ("exit 1", "is not QEMU: it says nothing to --version"),
        ("printf '\\377\\n'", "is not QEMU: to --version it says '\ufffd'"),
    ],
)
def test_a_program_that_is_not_qemu(lines: str, line: str, script: Script) -> None:
    program = script(lines)
    with pytest.raises(ConfigError, match=f"^{program}: {line}$"):
        check(program)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no-such-qemu: there is no such program; install QEMU 10\.1 or newer"):
        check("no-such-qemu")
    with pytest.raises(ConfigError, match=r": cannot be run: Permission denied$"):
        check(str(tmp_path))
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(ConfigError, match=r": cannot be run: Exec format error$"):
        check(str(tmp_path / "text"))


def test_a_program_that_does_not_answer(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_program, "_PATIENCE", 0.1)
    with pytest.raises(ConfigError, match=r": it does not answer to --version$"):
        check(script("exec sleep 60"))


class Work:
    """Something to do until it is told to stop."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.stopped = 0

    def serve(self) -> None:
        os.read(self.read, 1)

    def stop(self) -> None:
        self.stopped += 1
        os.write(self.write, b"x")


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    os.close(work.read)
    os.close(work.write)


@pytest.mark.parametrize("status", [0, 1, 77])
def test_its_exit_status(status: int, work: Work) -> None:
    assert run(["sh", "-c", f"sleep 0.05; exit {status}"], work.serve, work.stop) == status
    assert work.stopped


def test_it_ends_before_the_work_begins(work: Work) -> None:

    def serve() -> None:
        time.sleep(0.2)
        work.serve()

    assert run(["true"], serve, work.stop) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_that_has_ended_it(number: signal.Signals, work: Work) -> None:
    assert run(["sh", "-c", f"kill -{number.value} $$"], work.serve, work.stop) == 128 + number


@pytest.mark.parametrize("number", FORWARDED)
def test_signals_are_forwarded(number: signal.Signals, tmp_path: Path, work: Work) -> None:
    ready = tmp_path / "ready"
    lines = f"trap 'exit 5' {number.name.removeprefix('SIG')}; touch {ready}; while :; do sleep 0.02; done"

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    before = [signal.getsignal(each) for each in (*FORWARDED, signal.SIGCHLD)]
    assert run(["sh", "-c", lines], work.serve, work.stop) == 5
    thread.join()
    assert [signal.getsignal(each) for each in (*FORWARDED, signal.SIGCHLD)] == before


def test_a_signal_from_before_the_start_is_forwarded(work: Work) -> None:
    @contextlib.contextmanager
    def hurry() -> Iterator[None]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    assert run(["sleep", "60"], work.serve, work.stop, around_start=hurry()) == 128 + signal.SIGTERM


def test_ignored_signals_stay_ignored() -> None:
    program = (
        "import signal, sys; from pyvirtfs.vmm.qemu_program import run;"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "nothing = lambda: None;"
        "sys.exit(run(['sh', '-c', 'kill -HUP $$; kill -HUP $PPID; exit 3'], nothing, nothing))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 3


def test_it_has_the_streams_and_the_inherited_descriptors(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    private = os.open(tmp_path, os.O_RDONLY)
    try:
        lines = f"echo fd > /proc/self/fd/{write}; test -e /proc/self/fd/{private} && exit 9; exit 0"
        assert run(["sh", "-c", lines], lambda: None, lambda: None) == 0
        assert os.read(read, 10) == b"fd\n"
    finally:
        for fd in (read, write, private):
            os.close(fd)


def test_what_cannot_be_started() -> None:
    with pytest.raises(ConfigError, match=r"^no-such-program: cannot be run: No such file or directory$"):
        run(["no-such-program"], lambda: None, lambda: None)


@pytest.mark.parametrize("lines", ["exec sleep 60", "trap '' TERM; while :; do sleep 0.05; done"])
def test_no_child_is_left_when_the_work_fails(lines: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemu_program, "_LAST_PATIENCE", 0.3)
    pid = tmp_path / "pid"

    def fail() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(["sh", "-c", f"echo $$ > {pid}; {lines}"], fail, lambda: None)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_a_signal_before_there_is_a_program(tmp_path: Path) -> None:
    """It is not started, and what was made for it can be cleaned up in peace."""
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        started = tmp_path / "started"
        nothing: list[int] = []
        assert run(["touch", str(started)], nothing.clear, nothing.clear, signals=signals) == 128 + signal.SIGHUP
        os.kill(os.getpid(), signal.SIGTERM)
    assert not started.exists()


def test_a_signal_after_its_end_does_nothing(work: Work) -> None:
    with Signals() as signals:
        assert run(["sh", "-c", "exit 7"], work.serve, work.stop, signals=signals) == 7
        for number in FORWARDED:
            os.kill(os.getpid(), number)


def test_an_end_is_noticed_while_somebody_asks_for_it(work: Work) -> None:
    """The handler of SIGCHLD may come in the middle of Popen.poll, which has its lock then."""

    def serve() -> None:
        child = signals._child
        assert child is not None
        with child._waitpid_lock:  # type: ignore[attr-defined]  # as poll does it
            work.serve()

    with Signals() as signals:
        assert run(["sleep", "0.1"], serve, work.stop, signals=signals) == 0
