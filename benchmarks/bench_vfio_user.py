"""The device in another process, behind a vfio-user socket: from the doorbell until the answer is in the ring.

The client does not sleep but looks at the ring, as a guest's processor does that has nothing else to do. Beside it, as
the floor, a byte that goes to another process by a socket and comes back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ring_feeder import RingFeeder
from pyvirtfs import GuestMemory
from pyvirtfs.guest import Interrupts, VfioUserClient
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as p9
from pyvirtfs.syscalls import memfd_create

RAM = 64 << 20
BATCH = 64
ROUNDS = 100
GROUP = "getattr over vfio-user"
ECHO = "import socket; s = socket.socket(fileno=0)\nwhile d := s.recv(64): s.send(d)"


@contextlib.contextmanager
def serve(export: Path) -> Iterator[str]:
    """`pyvirtfs serve` on a folder; the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="pyvirtfs-") as place:
        path = f"{place}/socket"
        command = [sys.executable, "-m", "pyvirtfs", "serve", "--socket", path, "-virtfs"]
        command.append(f"local,path={export},mount_tag=bench,security_model=none")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                if server.stdout is None or "READY\n" not in server.stdout:
                    raise RuntimeError("the server does not start")
                yield path
            finally:
                server.terminate()


@pytest.fixture
def feeder(export: Path) -> Iterator[RingFeeder]:
    """A ring of a device in another process."""
    ram = memfd_create("guest-ram", RAM)
    memory = GuestMemory.from_fd(ram, RAM)
    with serve(export) as path, VfioUserClient(path, memory, Interrupts().pin(), memory_fd=ram) as client:
        feeder = Remote(client, memory)
        feeder.call_once(codec.encode(p9.TVERSION, p9.NOTAG, 1 << 19, b"9P2000.L"))
        feeder.call_once(codec.encode(p9.TATTACH, 0, 0, p9.NOFID, b"root", b"", 0))
        yield feeder
    os.close(ram)


class Remote(RingFeeder):
    """A feeder that waits until the other process has answered."""

    def ring(self, count: int) -> None:
        """As `RingFeeder.ring`."""
        super().ring(count)
        used, published = self.memory.view(0x3000, 4).cast("H"), self._published
        deadline = time.monotonic() + 10
        while used[1] != published:
            if time.monotonic() > deadline:
                raise RuntimeError("no answer")


@pytest.mark.parametrize("depth", [1, 64])
def test_getattr(benchmark: Any, feeder: RingFeeder, depth: int) -> None:
    """Tgetattr of the root."""
    benchmark.group = GROUP
    benchmark.extra_info["label"] = f"device, depth {depth}"
    benchmark.extra_info["operations"] = BATCH
    requests = [feeder.add(codec.encode(p9.TGETATTR, 1, 0, 0x7FF)) for _ in range(BATCH)]

    def ring_all() -> None:
        for _ in range(BATCH // depth):
            feeder.ring(depth)

    benchmark.pedantic(ring_all, setup=lambda: feeder.stage(requests), rounds=ROUNDS, warmup_rounds=5)
    if feeder.memory.read(requests[0].reply_address, 5)[4] != p9.RGETATTR:
        raise RuntimeError("a request failed")


def test_echo_floor(benchmark: Any) -> None:
    """A byte to another process and back."""
    benchmark.group = GROUP
    benchmark.extra_info["label"] = "a byte there and back"
    benchmark.extra_info["floor"] = True
    benchmark.extra_info["operations"] = BATCH
    here, there = socket.socketpair()
    with here, subprocess.Popen([sys.executable, "-S", "-c", ECHO], stdin=there.fileno()):
        there.close()

        def call() -> None:
            for _ in range(BATCH):
                here.send(b"x")
                here.recv(64)

        benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=5)
        here.close()
