"""9P over a unix socket: what a server process spends on a request, its own processor time and not the client's.

The same client asks `pyvirtfs serve --listen`, diod if that is installed (Debian's package), and, as the floor, the 9P
server in this process, which is handed each message in memory. `depth` is the number of requests that are sent before
the first answer is awaited.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.p9 import Server, codec
from pyvirtfs.p9 import constants as p9

BATCH = 64
ROUNDS = 100
MSIZE = 65536
ROOT, FILE = 0, 1
REQUESTS = {
    "getattr": (codec.encode(p9.TGETATTR, 1, FILE, 0x7FF), 160),
    "read 4 KiB": (codec.encode(p9.TREAD, 1, FILE, 0, 4096), 11 + 4096),
    "read 60 KiB": (codec.encode(p9.TREAD, 1, FILE, 0, 60 * 1024), 11 + 60 * 1024),
}
DIOD = shutil.which("diod", path="/usr/sbin:/usr/bin")


def start(server: str, export: Path, place: str) -> tuple[list[str], str]:
    """The command of a server, and where it listens."""
    path = f"{place}/socket"
    if server == "diod":
        return [str(DIOD), "-f", "-n", "-N", "-S", "-U", "root", "-L", "stderr", "-e", str(export), "-l", path], path
    command = [sys.executable, "-m", "pyvirtfs", "serve", "--log-level", "error", "--listen", f"unix:{path}", "-fsdev"]
    return [*command, f"local,id=bench,path={export},security_model=none"], path


class Remote:
    """A client of a server in another process."""

    def __init__(self, process: subprocess.Popen[bytes], path: str, export: Path) -> None:
        self._tasks = Path(f"/proc/{process.pid}/task")
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 20
        while self.socket.connect_ex(path):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the server does not start")
            time.sleep(0.05)
        self._buffer = bytearray(1 << 20)
        self.call(codec.encode(p9.TVERSION, p9.NOTAG, MSIZE, b"9P2000.L"))
        self.call(codec.encode(p9.TATTACH, 0, ROOT, p9.NOFID, b"", str(export).encode(), 0))
        self.call(codec.encode(p9.TWALK, 0, ROOT, FILE, (b"file",)))
        self.call(codec.encode(p9.TLOPEN, 0, FILE, 0))

    def call(self, request: bytes) -> None:
        """One request, which must succeed."""
        self.socket.sendall(request)
        reply = self.socket.recv(MSIZE)
        if reply[4] == p9.RLERROR:
            raise RuntimeError(f"{request!r} is answered with {reply!r}")

    def ask(self, request: bytes, reply_nbytes: int, depth: int) -> None:
        """The same request `BATCH` times."""
        several = request * depth
        for _ in range(BATCH // depth):
            self.socket.sendall(several)
            missing = reply_nbytes * depth
            while missing:
                missing -= self.socket.recv_into(self._buffer)

    def cpu(self) -> float:
        """Seconds that the server has used a processor for (schedstat of proc(5))."""
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self._tasks.iterdir()) / 1e9


@contextlib.contextmanager
def remote(server: str, export: Path) -> Iterator[Remote]:
    """A server process and its client."""
    with tempfile.TemporaryDirectory(prefix="pyvirtfs-") as place:
        command, path = start(server, export, place)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                client = Remote(process, path, export)
                with client.socket:
                    yield client
            finally:
                process.terminate()


def measure(benchmark: Any, clock: Callable[[], float], work: Callable[[], None]) -> None:
    """A row whose times are those of another clock."""
    benchmark.extra_info["operations"] = BATCH
    benchmark._timer = clock
    benchmark.pedantic(work, rounds=ROUNDS, warmup_rounds=10)


@pytest.mark.parametrize("depth", [1, 16])
@pytest.mark.parametrize("server", ["pyvirtfs", "diod"])
@pytest.mark.parametrize("name", REQUESTS)
def test_server_process(benchmark: Any, export: Path, name: str, server: str, depth: int) -> None:
    """A server behind a unix socket."""
    if server == "diod" and DIOD is None:
        pytest.skip("diod is not installed")
    (export / "file").write_bytes(bytes(1 << 20))
    benchmark.group = f"{name} over a stream, CPU"
    benchmark.extra_info["label"] = f"{server}, depth {depth}"
    with remote(server, export) as client:
        request, nbytes = REQUESTS[name]
        measure(benchmark, client.cpu, lambda: client.ask(request, nbytes, depth))


@pytest.mark.parametrize("name", REQUESTS)
def test_without_a_socket(benchmark: Any, export: Path, name: str) -> None:
    """The 9P server alone."""
    (export / "file").write_bytes(bytes(1 << 20))
    benchmark.group = f"{name} over a stream, CPU"
    benchmark.extra_info["label"] = "9P server without a socket"
    benchmark.extra_info["floor"] = True
    room = memoryview(bytearray(MSIZE))
    with contextlib.closing(LocalDriver(export)) as driver, contextlib.closing(Server(driver)) as server:

        def submit(request: bytes) -> None:
            server.submit(ViewBuffers([memoryview(request)]), ViewBuffers([room]), lambda *_: None, None)

        submit(codec.encode(p9.TVERSION, p9.NOTAG, MSIZE, b"9P2000.L"))
        submit(codec.encode(p9.TATTACH, 0, ROOT, p9.NOFID, b"", b"", 0))
        submit(codec.encode(p9.TWALK, 0, ROOT, FILE, (b"file",)))
        submit(codec.encode(p9.TLOPEN, 0, FILE, 0))
        request, _ = REQUESTS[name]

        def ask() -> None:
            for _ in range(BATCH):
                submit(request)

        measure(benchmark, time.process_time, ask)
