"""A real Linux guest under QEMU: booted from what `provision` has made, and told what to do over a serial line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

MAX_SCRIPT_NBYTES = 32 << 10  # what the guest's line discipline holds for sure
SOCKET_PATH_NBYTES = 100  # sun_path has 108 bytes, its NUL included
LATE_SECONDS = 10  # what a guest has to kill a script that takes too long, and to tell so
READY = re.compile(rb"PYVIRTFS-READY\n")
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off"

# Runs a command in a session of its own, and ends that session when this process lets go of the pipe, however it ends.
LEASH = 'exec 3<&0 </dev/null; { read -r _; kill -s KILL 0; } <&3 & exec "$@" 3<&-'


@dataclass(frozen=True)
class GuestFiles:
    """What `provision` has made."""

    qemu: str
    qemu_version: str
    kernel: str
    kernel_version: str
    modules: str  # the folder of all modules of the kernel
    initramfs: str
    busybox: str  # a static one
    packages: Sequence[str]

    @classmethod
    def from_json(cls, text: str) -> GuestFiles:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Output:
    """What a script in the guest has written, to stdout and stderr alike, and its exit status."""

    text: str  # bytes that are not UTF-8 are surrogates (os.fsencode gives them back)
    status: int


class RealGuestError(AssertionError):
    """A guest that does not do what it should: does not boot, does not answer, has ended."""


class RealGuest:
    """QEMU and the Linux in it.

    A context manager: `with RealGuest(files) as guest` starts it, waits until it is ready, and ends it in any case.
    (`start` and `wait_ready` do it one by one, `close` ends it.) No call waits for ever.

    Args:
        files: what `provision` has made.
        arguments: for QEMU, after those that are there anyway.
        prefix: a command to put in front of QEMU's, such as `[python, "-m", "pyvirtfs", "qemu", "--"]`.
        machine: QEMU's `-machine`, which may have more options (`pc,memory-backend=ram`).
        memory: QEMU's `-m`.
        smp: processors.
        append: for the kernel's command line. With `root=TAG rootfstype=9p rootflags=…` the guest goes on to that root
            file system: to the program that `init=` names, which gets the serial line that `send` and `expect` are the
            other end of; without `init=` the guest answers `run` from there.
        reboots: whether QEMU lives on when the guest reboots or panics.
        environment: variables to set for QEMU and `prefix`.
        boot_seconds: how long until the guest is ready.
    """

    def __init__(
        self,
        files: GuestFiles,
        arguments: Sequence[str] = (),
        *,
        prefix: Sequence[str] = (),
        machine: str = "pc",
        memory: str = "512M",
        smp: int = 1,
        append: str = "",
        reboots: bool = False,
        environment: Mapping[str, str] | None = None,
        boot_seconds: float = 60,
    ) -> None:
        self.files = files
        self.boot_seconds = boot_seconds
        self.seconds_to_ready: float | None = None  # of the last boot
        self._prefix, self._arguments = [*prefix], [*arguments]
        self._options = ["-machine", machine, "-m", memory, "-smp", str(smp), *([] if reboots else ["-no-reboot"])]
        self._append = f"{KERNEL_ARGUMENTS} {append}".strip()
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._control: _Line | None = None
        self._monitor: _Line | None = None
        self._began = 0.0
        self._lost: str | None = None  # why the guest takes no scripts any more
        self._logs = {"console": "", "stderr": ""}  # of a guest that has been closed

    # The process

    def start(self) -> Self:
        """Start QEMU, and return when its serial line and its monitor are there."""
        assert self._process is None, "a guest is started once"
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        self._folder = _short_folder()
        path = {name: str(self._folder / name) for name in ("console", "control", "monitor", "pid", "stderr")}
        with contextlib.ExitStack() as stack:
            listening = {name: stack.enter_context(_listen(path[name])) for name in ("control", "monitor")}
            self._began = time.monotonic()
            with open(path["stderr"], "wb") as errors:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", LEASH, "leash", *self._command(path)],
                    stdin=subprocess.PIPE, stdout=errors, stderr=errors, env=self._environment, start_new_session=True,
                )  # fmt: skip
            self._control = _Line(self._accept(listening["control"]))
            self._monitor = _Line(self._accept(listening["monitor"]))
        self._answer()  # the greeting
        self.qmp("qmp_capabilities")

    def _command(self, path: Mapping[str, str]) -> list[str]:
        return [
            *self._prefix, self.files.qemu, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none",
            *self._options, "-pidfile", path["pid"], "-serial", f"file:{path['console']}",
            "-kernel", self.files.kernel, "-initrd", self.files.initramfs, "-append", self._append,
            "-chardev", f"socket,id=control,path={path['control']}", "-serial", "chardev:control",
            "-chardev", f"socket,id=monitor,path={path['monitor']}", "-mon", "chardev=monitor,mode=control",
            *self._arguments,
        ]  # fmt: skip

    def _accept(self, listening: socket.socket) -> socket.socket:
        deadline = time.monotonic() + self.boot_seconds
        while time.monotonic() < deadline:
            self._check_alive()
            with contextlib.suppress(TimeoutError):
                return listening.accept()[0]
        raise self._error(f"QEMU does not start within {self.boot_seconds:.0f} s")

    @property
    def pid(self) -> int:
        """The process that has been started: `prefix`, or QEMU itself."""
        assert self._process is not None
        return self._process.pid

    @property
    def qemu_pid(self) -> int:
        """QEMU's process, with a `prefix` too."""
        assert self._folder is not None
        return int((self._folder / "pid").read_text())

    def kill(self) -> None:
        """SIGKILL for QEMU; returns when it is gone, and does not wait for what `prefix` does then."""
        with _Pidfd(self.qemu_pid) as qemu:
            if not qemu.kill():
                raise self._error("QEMU does not end within 10 s of SIGKILL")

    def terminate(self) -> None:
        """SIGTERM for the process that has been started (see `pid`)."""
        assert self._process is not None
        self._process.terminate()

    def wait(self, timeout: float = 30) -> int:
        """The exit status of the process that has been started, when it has ended; or minus a signal's number."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"QEMU does not end within {timeout:.0f} s") from None

    @property
    def running(self) -> bool:
        """Whether the process that has been started still runs."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End everything that has been started. `console` and `stderr` can still be read."""
        if self._process is not None and self._folder is not None:
            with contextlib.ExitStack() as stack:
                # `prefix` may have put QEMU into a session of its own, and leave it alone.
                qemu = stack.enter_context(_Pidfd(self.qemu_pid)) if self._has_qemu() else None
                if self._process.poll() is None:
                    self._process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(5)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # its session, where the leash is always left
                self._process.wait()
                if qemu is not None:
                    qemu.kill()
            assert self._process.stdin is not None
            self._process.stdin.close()
        for line in (self._control, self._monitor):
            if line is not None:
                line.close()
        if self._folder is not None:
            self._logs = {"console": self.console, "stderr": self.stderr}
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _has_qemu(self) -> bool:
        """Whether the process that has written the file with QEMU's number is still there."""
        try:
            arguments = Path(f"/proc/{self.qemu_pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return False
        return os.fsencode(f"{self._folder}/pid") in arguments

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it tells

    @property
    def console(self) -> str:
        """All that the guest has written to its console."""
        return self._log("console")

    @property
    def stderr(self) -> str:
        """All that QEMU and `prefix` have written to stdout and stderr."""
        return self._log("stderr")

    def _log(self, name: str) -> str:
        if self._folder is None:
            return self._logs[name]
        try:
            return (self._folder / name).read_text(errors="replace").replace("\r\n", "\n")
        except FileNotFoundError:
            return ""

    def _error(self, what: str, **more: str) -> RealGuestError:
        """An error that shows all that may explain it."""
        sections = {**more, "QEMU": self.stderr[-4000:], "end of the guest's console": self.console[-6000:]}
        return RealGuestError(
            "\n".join([what, *(f"--- {title}:\n{text.rstrip()}" for title, text in sections.items() if text)])
        )

    def _check_alive(self) -> None:
        if self._process is None:
            raise self._error("the guest is not running")
        if self._process.poll() is not None:
            raise self._error(f"QEMU has ended with status {self._process.returncode}")

    # The serial line

    def _receive(self, deadline: float, what: str) -> None:
        """Wait until there is more on the serial line; with a reason, not for ever."""
        assert self._control is not None, "the guest is not running"
        while time.monotonic() < deadline:
            if not self._control.receive(0.5):
                self._check_alive()
            else:
                return
        self._check_alive()
        raise self._error(what, received=self._control.pending[-2000:].decode(errors="replace"))

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the guest takes scripts: after its start, or after a reboot."""
        seconds = self.boot_seconds if timeout is None else timeout
        self.expect(READY, seconds)
        self.seconds_to_ready = time.monotonic() - self._began
        self._lost = None

    def send(self, data: bytes) -> None:
        """Write to the serial line: to the program that `init=` names."""
        assert self._control is not None
        self._control.send(data)

    def expect(self, pattern: re.Pattern[bytes] | bytes, timeout: float = 60) -> re.Match[bytes]:
        """Wait until the serial line has shown a pattern, take all up to its end, and return the match."""
        assert self._control is not None
        deadline = time.monotonic() + timeout
        pattern = re.compile(pattern)
        while not (match := self._control.search(pattern)):
            shown = "ready" if pattern is READY else f"at {pattern.pattern!r}"
            self._receive(deadline, f"the guest is not {shown} within {timeout:.0f} s")
        del self._control.pending[: match.end()]
        return match

    def run(self, script: str, timeout: float = 60) -> Output:
        """Run a shell script in the guest. One that takes longer than `timeout` seconds is an error.

        It runs in a session of its own, in the folder `/`, without stdin. What it leaves in the background lives on.
        """
        if self._lost:
            raise self._error(f"no script can run: {self._lost}")
        data = script.encode(errors="surrogateescape") + b"\n"
        if len(data) > MAX_SCRIPT_NBYTES:
            raise ValueError(
                f"a script has at most {MAX_SCRIPT_NBYTES} bytes: let the guest read a file of an export instead"
            )
        nonce = secrets.token_hex(8)
        self._lost = "an earlier one has not been answered"  # unless it is
        seconds = max(1, round(timeout))
        deadline = time.monotonic() + seconds + LATE_SECONDS
        self.send(f"{nonce} {seconds} {len(data)}\n".encode() + data)
        answer = re.compile(rb"PYVIRTFS-READY\n|%s (\d+) ([01]) (\d+)\n" % nonce.encode())
        late = f"the guest does not answer within {seconds} s, nor {LATE_SECONDS} s later\n--- script:\n{script}"
        assert self._control is not None
        while not (match := self._control.search(answer)):
            self._receive(deadline, late)
        if match[1] is None:
            raise self._error("the guest has rebooted instead of giving an answer", script=script)
        del self._control.pending[: match.end()]
        while len(self._control.pending) < int(match[3]):
            self._receive(deadline, late)
        text = self._control.take(int(match[3])).decode(errors="surrogateescape")
        self._lost = None
        if match[2] == b"1":
            raise self._error(f"the script has been killed after {seconds} s", script=script, output=_printable(text))
        return Output(text, int(match[1]))

    def check(self, script: str, timeout: float = 60) -> str:
        """Run a shell script that succeeds, and return its output."""
        output = self.run(script, timeout)
        if output.status:
            raise self._error(
                f"exit status {output.status} in the guest", script=script, output=_printable(output.text)
            )
        return output.text

    def python(self, source: str, timeout: float = 60) -> str:
        """Run a Python program that succeeds, and return its output; Python's standard library is there in parts."""
        end = f"END-{secrets.token_hex(8)}"
        source = textwrap.dedent(source)
        path = "/dev/shm/control/program.py"
        return self.check(f"cat >{path} <<'{end}'\n{source}\n{end}\nexec python3 -I -S {path}\n", timeout)

    # Reboots

    def reboot(self, timeout: float | None = None) -> None:
        """Let the guest's kernel reboot at once (`reboot -f`), and wait until it is ready again; needs `reboots`."""
        data = b"exec reboot -f\n"
        self.send(f"{secrets.token_hex(8)} 60 {len(data)}\n".encode() + data)
        self._again(timeout)

    def reset(self, timeout: float | None = None) -> None:
        """Press the reset button (`system_reset`), and wait until the guest is ready again; needs `reboots`."""
        self.qmp("system_reset")
        self._again(timeout)

    def _again(self, timeout: float | None) -> None:
        self._lost = "the guest reboots"
        self._began = time.monotonic()
        self.wait_ready(timeout)

    # The monitor

    def qmp(self, command: str, /, **arguments: Any) -> Any:
        """What QEMU's monitor returns for a command; an error of it is an error here."""
        assert self._monitor is not None
        self._monitor.send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._answer()
            if "error" in answer:
                raise self._error(f"{command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def hmp(self, line: str) -> str:
        """What the monitor for people prints for a line."""
        return str(self.qmp("human-monitor-command", **{"command-line": line})).replace("\r\n", "\n")

    def _answer(self) -> dict[str, Any]:
        """The next message of the monitor, events included."""
        assert self._monitor is not None
        deadline = time.monotonic() + 30
        while b"\n" not in self._monitor.pending:
            if time.monotonic() > deadline:
                raise self._error("QEMU's monitor does not answer within 30 s")
            if not self._monitor.receive(0.5):
                self._check_alive()
        message: dict[str, Any] = json.loads(self._monitor.take(self._monitor.pending.index(b"\n") + 1))
        return message


class _Line:
    """A connection, and what has come in and was not yet taken."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pending = bytearray()

    def receive(self, seconds: float) -> bool:
        """Take in what is there within so many seconds; whether there was something."""
        self._connection.settimeout(seconds)
        try:
            data = self._connection.recv(1 << 18)
        except (TimeoutError, ConnectionResetError):
            return False
        if not data:
            time.sleep(0.01)  # QEMU is about to end
        self.pending += data
        return bool(data)

    def search(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        return pattern.search(bytes(self.pending))  # a match would see what becomes of a bytearray

    def take(self, nbytes: int) -> bytes:
        data = bytes(self.pending[:nbytes])
        del self.pending[:nbytes]
        return data

    def send(self, data: bytes) -> None:
        self._connection.settimeout(30)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the wait for the answer tells more
            self._connection.sendall(data)

    def close(self) -> None:
        self._connection.close()


class _Pidfd:
    """A process, which no other one can be taken for."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def kill(self) -> bool:
        """SIGKILL; whether it has ended within 10 s."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        return bool(select.select([self._fd], [], [], 10)[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _printable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")[-8000:]


def _short_folder() -> Path:
    """A new folder, short enough for the path of a socket."""
    folder = tempfile.mkdtemp(prefix="guest-")
    if len(os.fsencode(folder)) + len("/control") > SOCKET_PATH_NBYTES:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="guest-", dir="/tmp")
    return Path(folder)


def _listen(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen()
    listening.settimeout(0.1)
    return listening
