"""What a guest that holds 100,000 objects costs: memory, and time where most of them have no descriptor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COUNT = 100_000
EXPECTED = "≤ 100 MB"

# A process of its own: what it holds is measured from outside of Python.
HOLD = """
import os, resource, sys, time
from pyvirtfs.fsdev import create
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.p9 import frames
from pyvirtfs.p9.server import Server

folder, model, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for index in range(count):
    os.close(os.open(f"{folder}/{index}", os.O_CREAT | os.O_WRONLY))
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def call(request):
    answers = []
    server.submit(ViewBuffers.of(bytearray(request)), room, lambda _token, nbytes: answers.append(nbytes), None)
    assert answers == [data[0] | data[1] << 8 | data[2] << 16] and data[4] != 7, bytes(data[:11])

data = bytearray(8192)
room = ViewBuffers.of(data)
server = Server(create(f"local,path={folder},security_model={model}"))
call(frames.build("Tversion", 1, {"msize": 8192, "version": b"9P2000.L"}))
call(frames.build("Tattach", 1, {"fid": 0, "afid": 0xFFFFFFFF, "uname": b"", "aname": b"", "n_uname": 0}))
before = resident()
for index in range(count):
    call(frames.build("Twalk", 1, {"fid": 0, "newfid": index + 1, "wnames": [b"%d" % index]}))
held = resident() - before
assert len(os.listdir("/proc/self/fd")) < 1024
requests = [frames.build("Tgetattr", 1, {"fid": index, "request_mask": 0x7FF}) for index in range(1, count, 100)]
began = time.process_time()
for request in requests:
    call(request)
print(held, (time.process_time() - began) / len(requests))
"""


@pytest.mark.benchmark(group="100,000 fids, 1024 descriptors")
@pytest.mark.parametrize("model", ["none", "mapped-xattr", "mapped-file"])
def bench_fids(benchmark: Any, export: Path, model: str) -> None:
    def hold() -> list[str]:
        command = [sys.executable, "-c", HOLD, str(export), model, str(COUNT)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    held, seconds = benchmark.pedantic(hold, rounds=1)
    benchmark.stats.stats.data = [float(seconds)]
    label = f"getattr of one without a descriptor, {model}; {int(held) / 1e6:.0f} MB in all"
    benchmark.extra_info.update(label=label, expected=EXPECTED)
