"""What the security models cost: getattr, walk and clunk, and a listing of 1000 entries, through the whole device.

The objects were made through the export, so that the mapped models keep something of each. Times are for one operation
with 64 requests in the ring (the listing: 1); the floor is the time of the model ``none``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_device import BATCH, FILE, FOLDER, MSIZE, RAM, ROOT, Sink, expect, listing, run
from benchmarks.ring_feeder import RingFeeder
from pyvirtfs import GuestMemory, Virtio9pPci
from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as p9

MODELS = ["none", "passthrough", "mapped-xattr", "mapped-file"]
COUNT = 32 * 1024
pytestmark = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def feeder(export: Path, model: str) -> Iterator[RingFeeder]:
    """A device on `export` with fids for a file and a folder of 1000 entries."""
    try:
        driver = LocalDriver(export, model)
    except ConfigError as error:
        pytest.skip(str(error))
    top, _ = driver.attach(b"", 0)
    driver.mknod(top, b"file", 0o640, 0, 0, 1000, 1000)
    driver.mkdir(top, b"folder", 0o755, 1000, 1000)
    folder = driver.walk(top, [b"folder"]).node
    if folder is None:
        raise RuntimeError("there is no folder")
    for number in range(998):  # and . and ..
        driver.mknod(folder, b"entry-%04d" % number, 0o640, 0, 0, 1000, 1000)
    driver.close()
    time.sleep(0.1)  # a mapped model does not remember what it keeps of an object that has just been changed
    memory = GuestMemory.anonymous(RAM)
    with Virtio9pPci(
        f"local,path={export},security_model={model}", mount_tag="bench", memory=memory, interrupts=Sink()
    ) as device:
        feeder = RingFeeder(device, memory)
        call, encode = feeder.call_once, codec.encode
        call(encode(p9.TVERSION, p9.NOTAG, MSIZE, b"9P2000.L"))
        call(encode(p9.TATTACH, 0, ROOT, p9.NOFID, b"root", b"", 0))
        for fid, name, flags in ((FILE, b"file", 0), (FOLDER, b"folder", 0o200000)):
            call(encode(p9.TWALK, 0, ROOT, fid, (name,)))
            reply = call(encode(p9.TLOPEN, 0, fid, flags))
            if reply[4] != p9.RLOPEN:
                raise RuntimeError(f"cannot open {name!r}: {reply!r}")
        yield feeder


def label(benchmark: Any, group: str, model: str) -> None:
    """Name a row; the others are compared with the model ``none``."""
    expect(benchmark, f"{group}, by model", model)
    benchmark.extra_info["floor"] = model == "none"


def test_getattr(benchmark: Any, feeder: RingFeeder, model: str) -> None:
    """Tgetattr of a file by its fid."""
    label(benchmark, "getattr", model)
    message = codec.encode(p9.TGETATTR, 1, FILE, 0x7FF)
    run(benchmark, feeder, [feeder.add(message) for _ in range(BATCH)], BATCH)


def test_walk_clunk(benchmark: Any, feeder: RingFeeder, model: str) -> None:
    """Twalk of one name, then Tclunk: an object that nobody has held before."""
    label(benchmark, "walk+clunk", model)
    requests = []
    for number in range(BATCH // 2):
        requests.append(feeder.add(codec.encode(p9.TWALK, 1, FOLDER + 10, 100 + number, (b"entry-%04d" % number,))))
        requests.append(feeder.add(codec.encode(p9.TCLUNK, 1, 100 + number)))
    feeder.call_once(codec.encode(p9.TWALK, 0, ROOT, FOLDER + 10, (b"folder",)))
    run(benchmark, feeder, requests, BATCH, per_operation=2)


def test_create_clunk_unlink(benchmark: Any, feeder: RingFeeder, model: str) -> None:
    """Twalk (a clone), Tlcreate, Tclunk, Tunlinkat: four requests, one operation."""
    label(benchmark, "create+clunk+unlink", model)
    requests = []
    for number in range(BATCH // 4):
        name, fid = b"new-%d" % number, 100 + number
        requests += [
            feeder.add(codec.encode(p9.TWALK, 1, ROOT, fid, ())),
            feeder.add(codec.encode(p9.TLCREATE, 1, fid, name, 0o102, 0o100644, 0)),
            feeder.add(codec.encode(p9.TCLUNK, 1, fid)),
            feeder.add(codec.encode(p9.TUNLINKAT, 1, ROOT, name, 0)),
        ]
    run(benchmark, feeder, requests, BATCH, per_operation=4)


def test_listing(benchmark: Any, feeder: RingFeeder, model: str) -> None:
    """Treaddir until all 1000 entries were seen; one operation is the whole listing."""
    label(benchmark, "list 1000 entries", model)
    requests = listing(feeder, COUNT, 1000)
    run(benchmark, feeder, requests, 1, per_operation=len(requests))
