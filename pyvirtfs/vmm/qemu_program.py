"""QEMU as a program: whether it is one that takes a vfio-user device, and how it is run as a child."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final, Self

from pyvirtfs.errors import ConfigError

MIN_VERSION: Final = (10, 1)
"""The first release that has `vfio-user-pci`."""
_PATIENCE: Final = 30.0
"""Seconds for QEMU to say what it is."""
_LAST_PATIENCE: Final = 5.0
"""Seconds for QEMU to end where we have to."""
_VERSION: Final = re.compile(r"QEMU emulator version ((\d+)\.(\d+)[^\s,]*)")
_PACKAGES: Final = {"i386": "x86", "x86_64": "x86", "arm": "arm", "aarch64": "arm", "riscv64": "misc", "ppc64": "ppc"}
FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _advice(program: str) -> str:
    """What to install."""
    machine = os.path.basename(program).removeprefix("qemu-system-")
    package = f"qemu-system-{_PACKAGES.get(machine, 'x86')}"
    return f"QEMU {MIN_VERSION[0]}.{MIN_VERSION[1]} or newer (Debian: apt-get install -t trixie-backports {package})"


def _ask(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise ConfigError(program, f"there is no such program; install {_advice(program)}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(program, f"it does not answer to {arguments[0]}") from None
    except OSError as error:
        raise ConfigError(program, f"cannot be run: {error.strerror}") from None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def check(program: str) -> str:
    """See that a program is a QEMU that takes a vfio-user device. It is run twice for that.

    Returns:
        Its version.

    Raises:
        ConfigError: It is not; says what it is, and what to install.
    """
    answer = _ask(program, "--version")
    found = _VERSION.search(answer.stdout)
    if found is None:
        said = _first_line(answer.stdout) or _first_line(answer.stderr)
        told = f"to --version it says {said!r}" if said else "it says nothing to --version"
        raise ConfigError(program, f"is not QEMU: {told}")
    version = found[1]
    if (int(found[2]), int(found[3])) < MIN_VERSION:
        raise ConfigError(program, f"is QEMU {version}, which has no vfio-user-pci device; install {_advice(program)}")
    answer = _ask(program, "-device", "vfio-user-pci,help")
    if answer.returncode or "socket=" not in answer.stdout:
        raise ConfigError(
            program, f"is QEMU {version}, made without its vfio-user-pci device; install {_advice(program)}"
        )
    return version


class Signals:
    """Signals to this process that are meant for the program that it runs. A context manager, for the main thread.

    What comes before the program runs is noted, and it is not started then; what comes after its end is ignored, so
    that nothing interrupts the cleaning up inside of the block. Signals that this process was started to ignore, as by
    nohup(1), stay ignored.
    """

    def __init__(self) -> None:
        self.early: list[int] = []
        """What came before there was a program."""
        self._child: subprocess.Popen[bytes] | None = None
        self._stop: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in (*FORWARDED, signal.SIGCHLD)}
        for number, old in self._before.items():
            if number is signal.SIGCHLD:
                signal.signal(number, self._ended)
            elif old is not signal.SIG_IGN:
                signal.signal(number, self._forward)
        return self

    def __exit__(self, *_details: object) -> None:
        for number, old in self._before.items():
            signal.signal(number, old)

    def attend(self, child: subprocess.Popen[bytes], stop: Callable[[], None]) -> None:
        """From now on signals go to `child`, and `stop` is called when it has ended: in here, or in a handler."""
        self._stop = stop
        self._child = child
        for number in self.early:
            child.send_signal(number)
        self._ended()

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._child is None:
            self.early.append(number)
        else:
            self._child.send_signal(number)  # unless it has ended

    def _ended(self, *_details: object) -> None:
        # Not Popen.poll(): this may interrupt one, which has the lock then.
        if self._child is not None and self._stop is not None and _has_ended(self._child.pid):
            self._stop()


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # and somebody has asked for its status
        return True


def run(
    command: Sequence[str],
    serve: Callable[[], None],
    stop: Callable[[], None],
    *,
    signals: Signals | None = None,
    around_start: contextlib.AbstractContextManager[object] | None = None,
) -> int:
    """Run a program, and `serve` until it ends. SIGTERM, SIGINT and SIGHUP go to the program. For the main thread.

    Standard streams and inherited descriptors are the program's, too.

    Args:
        command: The program and its arguments.
        serve: Works until `stop` is called.
        stop: Ends `serve`; called in a signal handler, perhaps before `serve` is.
        signals: Those that are handled already; None: from here on, and until this returns.
        around_start: What the program is to be started in.

    Returns:
        Its exit status; 128 + n if signal n has ended it, or came before it was started.

    Raises:
        ConfigError: It cannot be started.
    """
    with Signals() if signals is None else contextlib.nullcontext(signals) as own:
        if own.early:
            return 128 + own.early[0]
        try:
            with around_start or contextlib.nullcontext():
                # Descriptors that the caller means for QEMU (-add-fd, fd=) are inheritable, and ours are not.
                child = subprocess.Popen(command, close_fds=False)
        except OSError as error:
            raise ConfigError(command[0], f"cannot be run: {error.strerror}") from None
        try:
            own.attend(child, stop)
            serve()
            status = child.wait()
        finally:
            _end(child)
    return 128 - status if status < 0 else status


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave no child behind, whatever went wrong."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_LAST_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
