"""Linux itself as a 9P client on a TCP port: `pyvirtfs serve --listen`, mounted by guests through QEMU's own network.

The guest has no modules for a network of its own; they come by the virtio device of the same server.
"""

from __future__ import annotations

import lzma
import random
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served, differences, mounted, sha256

pytestmark = pytest.mark.slow

MODULES = ("net/9p/9pnet_fd", "drivers/net/ethernet/intel/e1000/e1000")
HOST = "10.0.2.2"
"""The machine's loopback address, as guests see it that have QEMU's user network."""
NETWORK = ("-netdev", "user,id=net", "-device", "e1000,netdev=net,romfile=")


class Streamed(NamedTuple):
    guest: RealGuest
    export: Path
    port: int

    def mount(self, options: str, at: str = "/stream") -> None:
        self.guest.check(
            f"mkdir -p {at} && mount -t 9p -o trans=tcp,port={self.port},version=9p2000.L,{options} {HOST} {at}"
        )


@pytest.fixture(scope="module")
def streamed(guest_files: GuestFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streamed]:
    """A guest with a network, and an export on a TCP port that it reaches."""
    modules, export = tmp_path_factory.mktemp("modules"), tmp_path_factory.mktemp("export")
    for name in MODULES:
        packed = Path(guest_files.modules) / "kernel" / f"{name}.ko.xz"
        (modules / f"{packed.stem}").write_bytes(lzma.decompress(packed.read_bytes()))
    options = ("-fsdev", f"local,id=stream,path={export},security_model=none", "--listen", "tcp:0",
               "--allow-unauthenticated-tcp")  # fmt: skip
    with Served(guest_files, {"test_mount": modules}, options=options) as served:
        port = re.search(r"port=([0-9]+)", (served.folder / "stdout").read_text())
        assert port is not None
        guest = served.boot(*NETWORK)
        with mounted(guest):
            for name in MODULES:
                guest.check(f"insmod /mnt/{name.rpartition('/')[2]}.ko")
        guest.check("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")
        yield Streamed(guest, export, int(port[1]))


@pytest.fixture(params=["msize=8192,cache=none", "msize=1048576,cache=loose"])
def options(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_contents(streamed: Streamed, options: str) -> None:
    block = random.randbytes(1 << 20)
    (streamed.export / "from_host").write_bytes(b"".join(block[number:] + block[:number] for number in range(4)))
    streamed.mount(options)
    guest = streamed.guest
    assert f",{options.partition(',')[0]}," in guest.check("grep ' /stream 9p ' /proc/mounts")
    try:
        told = guest.check("cd /stream; sha256sum <from_host; cp from_host copy", timeout=120)
        assert told.split()[0] == sha256(streamed.export / "from_host")
        told = guest.check("cd /stream; head -c 1000123 /dev/urandom | tee from_guest | sha256sum", timeout=120)
        guest.check("sync -f /stream/from_guest || sync")
    finally:
        guest.check("cd /; umount /stream", timeout=60)
    assert told.split()[0] == sha256(streamed.export / "from_guest")
    assert sha256(streamed.export / "copy") == sha256(streamed.export / "from_host")


def test_many_at_once_and_killed(streamed: Streamed) -> None:
    """Several mounts, processes that work in them at the same time, and some that are killed in the middle."""
    guest = streamed.guest
    (streamed.export / "big").write_bytes(random.randbytes(8 << 20))
    for number in range(3):
        streamed.mount("msize=65536,cache=none", f"/stream{number}")
    told = guest.check(
        textwrap.dedent("""
        for mount in 0 1 2; do
            (while :; do cat /stream$mount/big >/dev/null; done) & killed="$killed $!"
            for turn in 1 2 3; do
                (mkdir /stream$mount/$mount.$turn && cd /stream$mount/$mount.$turn && for name in $(seq 20); do
                    echo $name >$name && mv $name n$name && ln n$name l$name || echo failed
                done) & waited="$waited $!"
            done
        done
        wait $waited
        kill -9 $killed
        wait
        sha256sum </stream1/big
        cd /
        umount /stream0 /stream1 /stream2 && echo well
        """),
        timeout=200,
    )
    assert "failed" not in told
    lines = [line for line in told.splitlines() if line.strip()]
    assert lines[-1] == "well"
    assert any(line.startswith(sha256(streamed.export / "big")) for line in lines)
    made = [path for path in streamed.export.rglob("n*") if path.parent != streamed.export]
    assert len(made) == 3 * 3 * 20
    assert all(path.read_text() == f"{path.name[1:]}\n" and path.stat().st_nlink == 2 for path in made)


def test_a_tree(streamed: Streamed) -> None:
    tree = streamed.export / "tree"
    for number in range(60):
        folder = tree / str(number % 7) / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ä{number}").write_bytes(random.randbytes(number * 500))
        (folder / f"link{number}").symlink_to(f"ä{number}")
    streamed.mount("msize=131072,cache=none")
    try:
        streamed.guest.check("cp -a /stream/tree /stream/again", timeout=120)
    finally:
        streamed.guest.check("umount /stream")
    found = [each for each in differences(tree, streamed.export / "again") if "/link" not in each]  # busybox's cp
    assert found == []  # does not set the times of links
    assert [path.readlink() for path in sorted(tree.rglob("link*"))] == [
        path.readlink() for path in sorted((streamed.export / "again").rglob("link*"))
    ]
