"""One guest, one folder, two devices: QEMU's own virtio-9p-pci and this one by vfio-user, in turn.

Software emulation takes most of the time in the guest, and the machine is shared: so a round does each operation with
one device and at once with the other, and the ratio is that of the medians of the rounds. Beside it the processor time
of the server is what this device costs; QEMU's own device runs within QEMU, whose time includes the emulated processor.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.conftest import machine
from benchmarks.realguest import operations
from tests.realguest.machine import GuestFiles, RealGuest

ROOT = Path(__file__).parents[2]
PROVISION = ROOT / "tests" / "realguest" / "provision"
MEMORY = "512M"
SHARED_RAM = ["-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on"]
MACHINE = "pc,memory-backend=ram"
MOUNTS = {"qemu": "/mnt/qemu", "pyvirtfs": "/mnt/pyvirtfs"}
TICK = 1 / os.sysconf("SC_CLK_TCK")
EXPECTED = {
    "sequential read": "≤ 1.25",
    "sequential write": "≤ 1.25",
    "2000 random reads of 4 KiB": "≤ 1.4",
    "stat of 2000 files": "≤ 1.4",
    "list 10000 entries": "< 1",
    "create and delete 1000 files": "≤ 1.4",
}


@dataclass
class Row:
    """What was measured of one operation, in seconds, by device."""

    wall: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MOUNTS})
    qemu_cpu: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MOUNTS})
    server_cpu: list[float] = field(default_factory=list)


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK


@contextmanager
def export(large: int) -> Iterator[Path]:
    """A folder on tmpfs with the files that the operations need."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="pyvirtfs-guest-", dir=where))
    try:
        with open(path / "large", "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(large))
        (path / "empty").mkdir()
        (path / "many").mkdir()
        for number in range(10000):
            (path / "many" / f"{number:05d}").touch()
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, str]]:
    """`pyvirtfs serve` on a folder; its process id and the path of its socket."""
    place = tempfile.mkdtemp(prefix="pyvirtfs-")
    path = f"{place}/socket"
    command = [sys.executable, "-m", "pyvirtfs", "serve", "--socket", path, "-virtfs"]
    command.append(f"local,path={folder},mount_tag=pyvirtfs,security_model=none")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + 10
            while not os.path.exists(path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server does not start")
                time.sleep(0.02)
            yield process.pid, path
        finally:
            process.terminate()
            process.wait(10)
            shutil.rmtree(place)


def builtin_device(folder: Path) -> list[str]:
    """QEMU's arguments for its own device, with its defaults."""
    return ["-virtfs", f"local,path={folder},mount_tag=qemu,security_model=none"]


def our_device(path: str) -> list[str]:
    """QEMU's arguments to attach to the server."""
    return ["-device", json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": path}})]


def mount(guest: RealGuest, tag: str, cache: str = "none") -> None:
    """Mount a device anew where `MOUNTS` says: nothing is cached."""
    where = MOUNTS[tag]
    options = f"trans=virtio,version=9p2000.L,msize=512000,cache={cache}"
    guest.check(f"umount {where} 2>/dev/null; mkdir -p {where} && mount -t 9p -o {options} {tag} {where}")


def boot_times(files: GuestFiles, folder: Path, rounds: int) -> Row:
    """How long it takes from QEMU's start until the guest has mounted each device alone."""
    row = Row()
    for _ in range(rounds):
        for name in MOUNTS:
            with server(folder) as (pid, path):
                arguments = builtin_device(folder) if name == "qemu" else our_device(path)
                before = processor_seconds(pid)
                begin = time.monotonic()
                with RealGuest(files, [*SHARED_RAM, *arguments], machine=MACHINE, memory=MEMORY) as guest:
                    mount(guest, name)
                    row.wall[name].append(time.monotonic() - begin)
                    row.qemu_cpu[name].append(processor_seconds(guest.qemu_pid))
                if name == "pyvirtfs":
                    row.server_cpu.append(processor_seconds(pid) - before)
    return row


def measure(files: GuestFiles, folder: Path, rounds: int, progress: Progress) -> dict[str, Row]:
    """Every operation, in turn with each device of one guest."""
    rows = {name: Row() for name in operations.OPERATIONS}
    task = progress.add_task("operations", total=rounds * len(rows) * len(MOUNTS))
    source = inspect.getsource(operations)
    with server(folder) as (pid, path):
        arguments = [*SHARED_RAM, *builtin_device(folder), *our_device(path)]
        with RealGuest(files, arguments, machine=MACHINE, memory=MEMORY) as guest:
            for turn in range(rounds + 1):  # the first one is not counted: caches are cold
                for operation, row in rows.items():
                    for name in MOUNTS if turn % 2 else reversed(MOUNTS):
                        mount(guest, name, operations.OPERATIONS[operation][0])
                        before = processor_seconds(guest.qemu_pid), processor_seconds(pid)
                        told = guest.python(f"{source}\nmain({operation!r}, {MOUNTS[name]!r})\n", timeout=300)
                        after = processor_seconds(guest.qemu_pid), processor_seconds(pid)
                        if not turn:
                            continue
                        row.wall[name].append(int(told) / 1e9)
                        row.qemu_cpu[name].append(after[0] - before[0])
                        if name == "pyvirtfs":
                            row.server_cpu.append(after[1] - before[1])
                        progress.advance(task)
    return rows


def line(operation: str, row: Row) -> str:
    """A row of the table."""
    wall = {name: statistics.median(times) for name, times in row.wall.items()}
    qemu = {name: statistics.median(times) for name, times in row.qemu_cpu.items()}
    ratio = wall["pyvirtfs"] / wall["qemu"]
    cells = [
        operation, f"{wall['qemu']:.3f}", f"{wall['pyvirtfs']:.3f}", f"{ratio:.2f}", EXPECTED.get(operation, ""),
        f"{qemu['qemu']:.2f}", f"{qemu['pyvirtfs']:.2f}", f"{statistics.median(row.server_cpu):.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.realguest", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each operation with each device (default 5)")
    parser.add_argument("--boots", type=int, default=3, help="of each device alone (default 3; 0: leave that out)")
    parser.add_argument("--large", type=int, default=128, help="MiB of the file that is read and written (default 128)")
    arguments = parser.parse_args()
    made = subprocess.run([sys.executable, PROVISION], stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        return made.returncode  # it has said why
    files = GuestFiles.from_json(made.stdout)
    console = Console(stderr=True)
    with export(arguments.large) as folder, Progress(console=console) as progress:
        rows = measure(files, folder, arguments.rounds, progress)
        if arguments.boots:
            booting = progress.add_task("boots", total=None)
            rows = {"boot to mount": boot_times(files, folder, arguments.boots), **rows}
            progress.update(booting, total=1, completed=1)
    print(
        f"Seconds, medians of {arguments.rounds} rounds. QEMU {files.qemu_version} (TCG), guest Linux"
        f" {files.kernel_version}, a file of {arguments.large} MiB, msize 512000; sequential with cache=loose,"
        f" fresh mounts, the rest with cache=none. {machine()}\n"
    )
    print("| in the guest | QEMU's | this one | ratio | expected | QEMU CPU with its own | with this | server CPU |")
    print("|---|---:|---:|---:|---|---:|---:|---:|")
    for operation, row in rows.items():
        print(line(operation, row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
