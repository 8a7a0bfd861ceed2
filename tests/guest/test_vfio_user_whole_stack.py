"""A whole guest on the VirtFS device behind a vfio-user socket: its RAM shared, or reached by messages."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyvirtfs import GuestMemory, Virtio9pPci
from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import COPYING, Channel, DirectMachine, Mount, VfioUserClient, mount
from pyvirtfs.syscalls import memfd_create
from pyvirtfs.testing import ServedFunction, check_descriptors
from pyvirtfs.virtio import features

DMA_WRITE = 12
PAGE = 4096
MIB = 1 << 20
RAM_NBYTES = 32 * MIB
Served: TypeAlias = ServedFunction[Virtio9pPci]
PATIENCE = 10.0


@pytest.fixture
def virtfs(export: Path, tmp_path: Path) -> Iterator[Served]:
    with check_descriptors():
        memory = GuestMemory()
        options = f"local,path={export},security_model=none"
        device = Virtio9pPci(options, mount_tag="tag", memory=memory, defer=True)
        with ServedFunction(device, memory, tmp_path / "socket") as served:
            yield served
        device.close()


class Meddler(VfioUserClient):
    """A client that does something in the middle of a payload that the server writes, page by page."""

    meddle: Callable[[Any], None] | None = None
    after = 0
    """After how many pages."""

    def _serve(self, message: Any) -> None:
        if self.meddle is not None and message.header.command == DMA_WRITE and len(message.body) > PAGE:
            self.after -= 1
            if self.after < 0:
                meddle, self.meddle = self.meddle, None
                meddle(message)
        super()._serve(message)


class Machine:
    """A guest that has mounted the export over the socket."""

    def __init__(self, path: str, *, share: bool, polling: bool = False, options: dict[str, Any], **channel: Any):
        self.fd = memfd_create("guest-ram", RAM_NBYTES)
        self.machine = DirectMachine(GuestMemory.from_fd(self.fd, RAM_NBYTES))
        self.client = Meddler(
            path, self.machine.memory, self.machine.pin, memory_fd=self.fd if share else None, **options
        )
        progress = self._poll if polling else self.client.progress
        function = self.machine.attach(self.client, progress)
        self.channel: Channel = self.machine.open_channel(function, polling=polling, **channel)
        self.mount: Mount = mount(self.channel)

    def _poll(self, timeout: float) -> bool:
        self.client.progress(min(timeout, 0.001))
        return True

    def remount(self) -> Mount:
        self.channel.start()
        self.mount = mount(self.channel)
        return self.mount

    def close(self) -> None:
        self.client.close()
        os.close(self.fd)


@contextlib.contextmanager
def running(served: Served, *, share: bool = True, **options: Any) -> Iterator[Machine]:
    client: dict[str, Any] = {"max_transfer": options.pop("max_transfer", MIB)}
    machine = Machine(served.path, share=share, options=client, **options)
    try:
        yield machine
    finally:
        machine.close()


PLAIN = features.mask(features.VERSION_1)
GUESTS: dict[str, dict[str, Any]] = {
    "msix": {},
    "intx": {"use_msix": False},
    "msix-plain": {"wanted": PLAIN},
    "intx-plain": {"use_msix": False, "wanted": PLAIN},
    "polling": {"polling": True},
    "copying-small-ring": {"shapes": COPYING, "queue_size": 16},
}


@pytest.mark.parametrize("share", [True, False], ids=["shared", "messages"])
@pytest.mark.parametrize("kind", GUESTS)
def test_a_guest_at_work(virtfs: Served, export: Path, kind: str, share: bool) -> None:
    with running(virtfs, share=share, **GUESTS[kind]) as guest:
        root = guest.mount.root
        assert guest.mount.tag == "tag"
        assert (root / "file").read_text() == "Hi Guest"
        data = os.urandom(300_000)
        (root / "new").write_bytes(data)
        assert (export / "new").read_bytes() == data
        assert (root / "new").read_bytes() == data
        (root / "folder").mkdir()
        for i in range(30):
            (root / "folder" / f"{i}").touch()
        assert sorted(path.name for path in (root / "folder").iterdir()) == sorted(map(str, range(30)))
        (root / "new").unlink()
        assert not (export / "new").exists()
        with pytest.raises(FileNotFoundError):
            (root / "new").stat()
        counters = guest.channel.driver.counters
        if kind != "polling":  # where one may have come before they were switched off
            assert bool(guest.machine.interrupts.messages) is not kind.startswith("intx")
        assert counters.queue_interrupts > 50 if kind != "polling" else counters.queue_interrupts <= 1
        assert bool(guest.client.reads_served) is not share
        assert guest.client.refused == 0
        guest.mount.umount()
        assert virtfs.function.device.errors == 0


@pytest.mark.parametrize("share", [True, False], ids=["shared", "messages"])
def test_many_requests_in_flight(virtfs: Served, share: bool) -> None:
    with running(virtfs, share=share) as guest:
        session = guest.mount.session
        fid = session.walk(guest.mount.root_fid, [b"file"])
        for _ in range(3):
            sent = [session.start(session.client.getattr(fid)) for _ in range(60)]
            assert {session.finish(each).size for each in reversed(sent)} == {8}
        assert guest.channel.driver.counters.kicks_suppressed + guest.channel.driver.counters.kicks >= 180
        session.clunk(fid)


@pytest.mark.parametrize("max_transfer", [MIB, 5000])
def test_a_mebibyte_by_messages(virtfs: Served, export: Path, max_transfer: int) -> None:
    with running(virtfs, share=False, max_transfer=max_transfer) as guest:
        data = os.urandom(MIB + 123)
        (guest.mount.root / "big").write_bytes(data)
        assert (export / "big").read_bytes() == data
        assert (guest.mount.root / "big").read_bytes() == data
        assert guest.client.reads_served > 100
        assert guest.client.writes_served > 100


def test_a_guest_after_a_guest(virtfs: Served) -> None:
    for share in (True, False, True):
        with running(virtfs, share=share) as guest:
            assert (guest.mount.root / "file").read_text() == "Hi Guest"
    with running(virtfs) as guest:  # one that is not closed properly
        (guest.mount.root / "file").open("rb")
    with running(virtfs) as guest:
        assert (guest.mount.root / "file").read_text() == "Hi Guest"


def test_reset_of_the_machine_and_remount(virtfs: Served) -> None:
    with running(virtfs) as guest:
        guest.mount.root.joinpath("file").open("rb")
        guest.client.reset()
        function = guest.machine.attach(guest.client, guest.client.progress)
        channel = guest.machine.open_channel(function)
        with mount(channel) as again:
            assert (again.root / "file").read_text() == "Hi Guest"


@pytest.mark.parametrize("share", [True, False], ids=["shared", "messages"])
def test_a_throttled_export(export: Path, tmp_path: Path, share: bool) -> None:
    """The loop comes back when a request's turn has come, and not before; meanwhile it serves."""
    (export / "big").write_bytes(bytes(300_000))
    options = f"local,path={export},security_model=none,throttling.bps-read=500000,throttling.iops-write=1"
    memory = GuestMemory()
    device = Virtio9pPci(options, mount_tag="tag", memory=memory, defer=True)
    turns = 0

    def counted() -> int:
        nonlocal turns
        turns += 1
        return run_pending()

    run_pending, device.run_pending = device.run_pending, counted  # type: ignore[method-assign]
    with check_descriptors(), device, ServedFunction(device, memory, tmp_path / "socket") as served:
        with running(served, share=share) as guest:
            session = guest.mount.session
            fid = session.walk(guest.mount.root_fid, [b"big"])
            session.call("Tlopen", fid=fid, flags=2)
            began, turns = time.monotonic(), 0
            sent = [session.start(session.client.read(fid, 50_000 * index, 50_000)) for index in range(6)]
            assert session.run(session.client.getattr(fid)).size == 300_000
            for each in sent:
                assert len(session.finish(each)) == 50_000
            assert time.monotonic() - began >= 0.4 - 1e-6
            assert turns < 60, "the loop spins"
            session.call("Twrite", fid=fid, offset=0, count=1, data=b"x")
            hours = [session.start(session.client.write(fid, 0, b"x" * 100)) for _ in range(10)]
            assert not hours[-1].done  # and the client leaves
            assert session.run(session.client.getattr(fid)).size == 300_000
        with running(served, share=share) as guest:
            assert (guest.mount.root / "file").read_text() == "Hi Guest"


# --- what the guest does while the server waits for its RAM ---


def big(guest: Machine, export: Path) -> None:
    (export / "big").write_bytes(os.urandom(MIB))
    assert (guest.mount.root / "big").stat().st_size == MIB


def meddled(guest: Machine, meddle: Callable[[Any], None], *, after: int = 30) -> None:
    """Read a large file, and do something after so many of its pages: the read fails."""
    client = guest.client
    client.after, client.meddle = after, meddle
    guest.channel.timeout = 1.0
    with pytest.raises(DeviceError):
        (guest.mount.root / "big").read_bytes()
    assert guest.client.meddle is None
    guest.channel.timeout = PATIENCE


def test_reset_while_the_server_waits(virtfs: Served, export: Path) -> None:
    with running(virtfs, share=False) as guest:
        big(guest, export)
        served: list[int] = []

        def reset(message: Any) -> None:
            guest.client.reset()
            served.append(guest.client.writes_served)

        meddled(guest, reset)
        assert guest.client.writes_served <= served[0] + 1  # the one that was on its way
        function = guest.machine.attach(guest.client, guest.client.progress)
        with mount(guest.machine.open_channel(function)) as again:
            assert len((again.root / "big").read_bytes()) == MIB


def test_a_driver_that_resets_the_device_while_the_server_waits(virtfs: Served, export: Path) -> None:
    """When the status register reads 0, the guest uses its memory for something else."""
    with running(virtfs, share=False) as guest:
        big(guest, export)
        served: list[int] = []

        def reset(message: Any) -> None:
            common = guest.channel.driver.common
            common.write("device_status", 0)
            assert common.read("device_status") == 0
            served.append(guest.client.writes_served)

        meddled(guest, reset)
        assert guest.client.writes_served <= served[0] + 1
        assert len((guest.remount().root / "big").read_bytes()) == MIB


def test_a_driver_that_resets_the_queue_while_the_server_waits(virtfs: Served, export: Path) -> None:
    """The request is gone without a word, and the device is well."""
    with running(virtfs, share=False) as guest:
        big(guest, export)

        def reset(message: Any) -> None:
            common = guest.channel.driver.common
            common.write("queue_select", 0)
            common.write("queue_reset", 1)

        meddled(guest, reset)
        assert guest.channel.broken is None
        assert guest.channel.driver.common.read("device_status") == 0x0F
        assert len((guest.remount().root / "big").read_bytes()) == MIB


def test_ram_is_unmapped_while_the_server_waits(virtfs: Served, export: Path) -> None:
    with running(virtfs, share=False) as guest:
        big(guest, export)
        meddled(guest, lambda _: guest.client.unmap(0, RAM_NBYTES))
        assert guest.channel.broken == "the device needs a reset"
        guest.client.map(0, RAM_NBYTES)
        assert len((guest.remount().root / "big").read_bytes()) == MIB


def test_ram_that_the_client_refuses(virtfs: Served, export: Path) -> None:
    with running(virtfs, share=False) as guest:
        big(guest, export)
        mapped = dict(guest.client._mapped)
        meddled(guest, lambda _: guest.client._mapped.clear())
        assert guest.client.refused == 1
        assert guest.channel.broken == "the device needs a reset"
        guest.client._mapped.update(mapped)
        assert len((guest.remount().root / "big").read_bytes()) == MIB


def test_ram_is_unmapped_between_requests(virtfs: Served) -> None:
    """Shared RAM goes away, from the server's address space too; when it is back, a remount works."""
    with running(virtfs) as guest:
        assert (guest.mount.root / "file").read_text() == "Hi Guest"
        before = Path("/proc/self/maps").read_text().count("guest-ram")
        guest.client.unmap(0, RAM_NBYTES)
        assert Path("/proc/self/maps").read_text().count("guest-ram") == before - 1
        with pytest.raises(DeviceError, match="needs a reset"):
            (guest.mount.root / "file").read_text()
        guest.client.map(0, RAM_NBYTES, fd=guest.fd)
        assert (guest.remount().root / "file").read_text() == "Hi Guest"


def test_ram_is_unmapped_after_a_mistake_of_the_guest(virtfs: Served) -> None:
    """What is remembered of the mistake does not hold on to the request, and so to the RAM that it lay in."""
    with running(virtfs) as guest:
        before = Path("/proc/self/maps").read_text().count("guest-ram")
        with pytest.raises(DeviceError, match="needs a reset"):
            guest.channel.wait(guest.channel.submit(b"\x07\0\0\0\x64\0\0", 100))
        guest.client.unmap(0, RAM_NBYTES)
        assert Path("/proc/self/maps").read_text().count("guest-ram") == before - 1
        guest.client.map(0, RAM_NBYTES, fd=guest.fd)
        assert (guest.remount().root / "file").read_text() == "Hi Guest"


def test_the_server_ends_under_a_mount(virtfs: Served) -> None:
    with running(virtfs) as guest:
        virtfs.stop()
        virtfs.server.close()
        begun = time.monotonic()
        with pytest.raises(DeviceError):
            (guest.mount.root / "file").read_text()
        assert time.monotonic() - begun < PATIENCE
