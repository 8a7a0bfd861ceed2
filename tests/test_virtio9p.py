"""The VirtFS device as an embedder makes it: options, mount tag, requests through the whole stack, closing."""

from __future__ import annotations

import gc
import os
import select
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pyvirtfs
from pyvirtfs import ConfigError, GuestMemory, Virtio9pPci
from pyvirtfs.fsdev import registry
from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.virtio9p import Config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEXT, WRITE = 1, 2
FEATURES = 1 | 1 << 28 | 1 << 32 | 1 << 40  # no event index: an interrupt for every batch
DESCRIPTORS, AVAILABLE, USED, MESSAGE, REPLY = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
NOFID = 0xFFFFFFFF
TVERSION, TATTACH, TGETATTR = 100, 104, 24


class Sink:
    def __init__(self) -> None:
        self.messages = 0
        self.level = False

    def msix(self, vector: int, address: int, data: int) -> None:
        self.messages += 1

    def intx(self, level: bool) -> None:
        self.level = level
        self.messages += level


class Guest:
    """Just enough of a driver: direct chains of two descriptors, INTx."""

    def __init__(self, device: Virtio9pPci, memory: GuestMemory) -> None:
        self.device = device
        self.memory = memory
        self.start()

    def status(self, value: int) -> int:
        self.device.bar_write(4, 20, 1, value)
        return self.device.bar_read(4, 20, 1)

    def start(self, features: int = FEATURES) -> None:
        write = self.device.bar_write
        self.device.config_write(4, 2, 6)
        for value in (0, 1, 3):
            self.status(value)
        for word in (0, 1):
            write(4, 8, 4, word)
            write(4, 12, 4, features >> 32 * word & 0xFFFFFFFF)
        assert self.status(11) == 11
        self.memory.write(DESCRIPTORS, bytes(0x3000))
        for offset, address in ((32, DESCRIPTORS), (40, AVAILABLE), (48, USED)):
            write(4, offset, 8, address)
        write(4, 28, 2, 1)
        assert self.status(15) == 15
        self.index = 0

    def send(self, message: bytes, room: int = 4096, slot: int = 0) -> None:
        request, reply = MESSAGE + 0x100 * slot, REPLY + 0x1000 * slot
        self.memory.write(request, message)
        table = struct.pack("<QIHHQIHH", request, len(message), NEXT, 2 * slot + 1, reply, room, WRITE, 0)
        self.memory.write(DESCRIPTORS + 32 * slot, table)
        self.memory.write(AVAILABLE + 4 + 2 * (self.index % 128), struct.pack("<H", 2 * slot))
        self.index = self.index + 1 & 0xFFFF
        self.memory.write(AVAILABLE + 2, struct.pack("<H", self.index))
        self.device.bar_write(4, 0x3000, 2, 0)

    @property
    def used(self) -> int:
        return int(struct.unpack("<H", self.memory.read(USED + 2, 2))[0])

    def call(self, kind: int, body: bytes, tag: int = 1) -> bytes:
        """One request; its reply, with header. b"" if there is none (yet)."""
        before = self.used
        self.send(struct.pack("<IBH", 7 + len(body), kind, tag) + body)
        if self.used == before:
            return b""
        _, nbytes = struct.unpack("<II", self.memory.read(USED + 4 + 8 * (before % 128), 8))
        return self.memory.read(REPLY, nbytes)

    def mount(self) -> None:
        version = self.call(TVERSION, struct.pack("<IH8s", 8192, 8, b"9P2000.L"), tag=0xFFFF)
        assert version[4] == TVERSION + 1
        assert self.call(TATTACH, struct.pack("<IIHHI", 0, NOFID, 0, 0, NOFID))[4] == TATTACH + 1


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.anonymous(1 << 20)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def options(tmp_path: Path) -> str:
    return f"local,path={tmp_path},security_model=none"


@pytest.fixture
def device(options: str, memory: GuestMemory, sink: Sink) -> Iterator[Virtio9pPci]:
    with Virtio9pPci(options, mount_tag="test_mount", memory=memory, interrupts=sink) as device:
        yield device


def test_the_ten_lines(tmp_path: Path, sink: Sink) -> None:
    memory = GuestMemory.anonymous(256 << 20)
    device = Virtio9pPci(
        f"local,path={tmp_path},security_model=none", mount_tag="test_mount", memory=memory, interrupts=sink
    )
    assert device.config_read(0, 4) == 0x10491AF4
    device.config_write(4, 2, 6)
    assert device.bar_read(4, 0x2000, 2) == len("test_mount")
    device.bar_write(4, 0x3000, 2, 0)
    assert device.run_pending() == 0
    assert device.next_deadline() is None
    assert device.wakeup_fileno() is None
    device.close()


@pytest.mark.parametrize("tag", ["t", "test_mount", b"\xff\xfe", "ä" * 15, "x" * 31])
def test_the_mount_tag_is_the_configuration(options: str, memory: GuestMemory, tag: str | bytes) -> None:
    with Virtio9pPci(options, mount_tag=tag, memory=memory) as device:
        raw = bytes(device.bar_read(4, 0x2000 + i, 1) for i in range(40))
    expected = tag.encode() if isinstance(tag, str) else tag
    assert Config.parse(raw).tag == expected
    assert raw[2 + len(expected) :].strip(b"\0") == b""


@pytest.mark.parametrize("tag", ["", "x" * 32, "ä" * 16, "a\0b", b"\0"])
def test_mount_tags_that_cannot_be(options: str, memory: GuestMemory, tag: str | bytes) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=r"^mount_tag: ") as caught:
        Virtio9pPci(options, mount_tag=tag, memory=memory)
    assert "\0" not in str(caught.value)
    nbytes = len(tag.encode() if isinstance(tag, str) else tag)
    if nbytes not in range(1, 32):
        assert f"{nbytes} bytes" in str(caught.value)
        assert "31" in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("wrong", [{"vectors": 5000}, {"queue_size": 100}])
def test_a_device_that_cannot_be_leaves_nothing_open(options: str, memory: GuestMemory, wrong: dict[str, int]) -> None:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        Virtio9pPci(options, mount_tag="t", memory=memory, **wrong)  # type: ignore[arg-type]  # that is the test
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_offered_features(device: Virtio9pPci) -> None:
    words = []
    for word in (0, 1):
        device.bar_write(4, 0, 4, word)
        words.append(device.bar_read(4, 4, 4))
    assert words == [1 | 1 << 28 | 1 << 29, 1 | 1 << 8]
    assert device.device.feature_names[0] == "9P_MOUNT_TAG"


def test_a_session(device: Virtio9pPci, memory: GuestMemory, sink: Sink) -> None:
    guest = Guest(device, memory)
    guest.mount()
    reply = guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF), tag=7)
    assert (len(reply), reply[4]) == (160, TGETATTR + 1)
    assert struct.unpack_from("<I", reply)[0] == 160  # the used length is the size field
    assert sink.messages
    assert device.server.fids == 1


def test_v006_a_reset_ends_the_session(device: Virtio9pPci, memory: GuestMemory) -> None:
    guest = Guest(device, memory)
    guest.mount()
    assert guest.status(0) == 0
    assert device.server.fids == 0
    guest.start()
    guest.mount()


@pytest.mark.parametrize("readable", range(7))
def test_h106_short_requests(device: Virtio9pPci, memory: GuestMemory, readable: int) -> None:
    guest = Guest(device, memory)
    guest.send(bytes(readable))
    assert guest.device.bar_read(4, 20, 1) & 64
    assert guest.used == 0
    guest.start()
    guest.mount()


@pytest.mark.parametrize("room", range(11))
def test_h106_no_room_for_a_reply(device: Virtio9pPci, memory: GuestMemory, room: int) -> None:
    guest = Guest(device, memory)
    guest.send(struct.pack("<IBHIH8s", 21, TVERSION, 0xFFFF, 8192, 8, b"9P2000.L"), room=room)
    assert guest.device.bar_read(4, 20, 1) & 64
    assert device.device.errors == 1
    guest.start()
    guest.mount()


class Waiting:
    """Stands in for a driver's getattr: answers when told to."""

    def __init__(self, driver: Any) -> None:
        self.answers: list[Completion[Any]] = []
        self.real = driver.getattr
        self.nodes: list[Any] = []
        driver.getattr = self

    def __call__(self, node: Any) -> Completion[Any]:
        answer: Completion[Any] = Completion()
        self.answers.append(answer)
        self.nodes.append(node)
        return answer

    def release(self) -> None:
        for answer, node in zip(self.answers, self.nodes, strict=True):
            answer.set_result(self.real(node))
        self.answers.clear()
        self.nodes.clear()


@pytest.fixture
def waiting(options: str, memory: GuestMemory, sink: Sink) -> Iterator[tuple[Guest, Waiting]]:
    driver = registry.create(options)
    slow = Waiting(driver)
    with Virtio9pPci(driver, mount_tag="t", memory=memory, interrupts=sink) as device:
        guest = Guest(device, memory)
        guest.mount()
        yield guest, slow
    driver.close()


def test_late_answers_come_with_run_pending(waiting: tuple[Guest, Waiting], sink: Sink) -> None:
    guest, slow = waiting
    sink.messages = 0
    guest.device.bar_read(4, 0x1000, 1)
    assert guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF)) == b""
    fd = guest.device.wakeup_fileno()
    assert fd is not None
    assert guest.device.run_pending() == 0
    before = guest.used
    slow.release()
    assert guest.used == before
    assert guest.device.run_pending() == 1
    assert guest.used == before + 1
    assert sink.messages == 1


@pytest.mark.parametrize("queue_only", [False, True])
def test_h116_reset_while_a_request_waits(waiting: tuple[Guest, Waiting], sink: Sink, queue_only: bool) -> None:
    guest, slow = waiting
    guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF))
    guest.memory.write(REPLY, b"\xaa" * 4096)
    write, read = guest.device.bar_write, guest.device.bar_read
    if queue_only:
        write(4, 22, 2, 0)
        write(4, 58, 2, 1)
        assert read(4, 58, 2) == 1  # the driver still has it: not finished
    else:
        assert guest.status(0) != 0
    used, messages = guest.used, sink.messages
    slow.release()
    guest.device.run_pending()
    assert (read(4, 58, 2) if queue_only else read(4, 20, 1)) == 0
    assert guest.used == used
    assert sink.messages == messages
    assert guest.memory.read(REPLY, 4096) == b"\xaa" * 4096
    guest.start()
    guest.mount()


def test_a_queue_reset_keeps_the_session(waiting: tuple[Guest, Waiting]) -> None:
    guest, slow = waiting
    write, read = guest.device.bar_write, guest.device.bar_read
    guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF))
    write(4, 58, 2, 1)
    slow.release()
    guest.device.run_pending()
    assert read(4, 58, 2) == 0
    assert guest.device.server.fids == 1
    guest.memory.write(DESCRIPTORS, bytes(0x3000))
    for offset, address in ((32, DESCRIPTORS), (40, AVAILABLE), (48, USED)):
        write(4, offset, 8, address)
    write(4, 28, 2, 1)
    guest.index = 0
    assert guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF)) == b""
    slow.release()
    assert guest.device.run_pending() == 1
    assert guest.memory.read(REPLY, 7)[4] == TGETATTR + 1


@pytest.mark.parametrize("features", [FEATURES, FEATURES | 1 << 29])
def test_ctrl_c_in_a_driver(options: str, memory: GuestMemory, sink: Sink, features: int) -> None:
    driver = registry.create(options)
    real = driver.getattr

    def interrupted(_node: Any) -> Any:
        driver.getattr = real  # type: ignore[method-assign]  # that is the test
        raise KeyboardInterrupt

    with Virtio9pPci(driver, mount_tag="t", memory=memory, interrupts=sink, defer=True) as device:
        guest = Guest(device, memory)
        guest.start(features)
        body = struct.pack("<IQ", 0, 0x7FF)
        for slot, (kind, content) in enumerate(
            (
                (TVERSION, struct.pack("<IH8s", 8192, 8, b"9P2000.L")),
                (TATTACH, struct.pack("<IIHHI", 0, NOFID, 0, 0, 0)),
            )
        ):
            guest.send(struct.pack("<IBH", 7 + len(content), kind, slot) + content, slot=slot)
        device.run_pending()
        driver.getattr = interrupted  # type: ignore[assignment, method-assign]  # that is the test
        for slot in (2, 3):
            guest.send(struct.pack("<IBH", 19, TGETATTR, slot) + body, slot=slot)
        device.bar_read(4, 0x1000, 1)
        memory.write(AVAILABLE + 4 + 2 * 128, struct.pack("<H", 2))  # used_event
        with pytest.raises(KeyboardInterrupt):
            device.run_pending()
        assert memory.read(REPLY + 0x2000, 11) == struct.pack("<IBHI", 11, 7, 2, 5)  # EIO
        assert device.bar_read(4, 0x1000, 1) == 1  # and the guest was told
        assert device.bar_read(4, 20, 1) == 15
        if features >> 29 & 1:
            assert memory.read(USED + 4 + 8 * 128, 2) == struct.pack("<H", 4)  # the next request rings the doorbell
        assert device.run_pending() == 1
        assert memory.read(REPLY + 0x3000, 5)[4] == TGETATTR + 1
    driver.close()


def test_an_interrupt_for_what_was_answered_before_a_mistake(options: str, memory: GuestMemory, sink: Sink) -> None:
    with Virtio9pPci(options, mount_tag="t", memory=memory, interrupts=sink, defer=True) as device:
        guest = Guest(device, memory)
        guest.send(struct.pack("<IBHIH8s", 21, TVERSION, 0xFFFF, 8192, 8, b"9P2000.L"))
        guest.send(b"", slot=1)
        device.run_pending()
        assert guest.used == 1
        assert device.bar_read(4, 0x1000, 1) == 3  # the queue's and the configuration's
        assert device.bar_read(4, 20, 1) & 64


def test_an_answer_waits_without_a_busy_loop_while_bus_mastering_is_off(waiting: tuple[Guest, Waiting]) -> None:
    guest, slow = waiting
    guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF))
    fd = guest.device.wakeup_fileno()
    assert fd is not None
    guest.device.config_write(4, 2, 2)
    slow.release()
    assert select.select([fd], [], [], 0)[0]
    used = guest.used
    assert guest.device.run_pending() == 0
    assert not select.select([fd], [], [], 0)[0]
    assert guest.device.next_deadline() is None
    guest.device.config_write(4, 2, 6)
    assert guest.used == used + 1


def test_a_queue_reset_ends_while_bus_mastering_is_off(waiting: tuple[Guest, Waiting]) -> None:
    guest, slow = waiting
    guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF))
    guest.device.config_write(4, 2, 2)
    guest.device.bar_write(4, 58, 2, 1)
    slow.release()
    guest.device.run_pending()
    assert guest.device.bar_read(4, 58, 2) == 0


def test_a_deferred_doorbell_is_due_now(options: str, memory: GuestMemory, sink: Sink) -> None:
    with Virtio9pPci(options, mount_tag="t", memory=memory, interrupts=sink, defer=True) as device:
        guest = Guest(device, memory)
        device.run_pending()
        assert device.next_deadline() is None
        guest.send(struct.pack("<IBHIH8s", 21, TVERSION, 0xFFFF, 8192, 8, b"9P2000.L"))
        assert device.next_deadline() == 0.0
        assert device.run_pending() == 1
        assert device.next_deadline() is None


def test_ctrl_c_outside_of_a_driver_needs_a_reset(options: str, memory: GuestMemory, sink: Sink) -> None:
    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    with Virtio9pPci(options, mount_tag="t", memory=memory, interrupts=sink, trace=interrupted) as device:
        guest = Guest(device, memory)
        with pytest.raises(KeyboardInterrupt):
            guest.send(struct.pack("<IBHIH8s", 21, TVERSION, 0xFFFF, 8192, 8, b"9P2000.L"))
        assert device.bar_read(4, 20, 1) & 64


def test_a_driver_that_starts_again_out_of_an_interrupt(options: str, memory: GuestMemory, sink: Sink) -> None:
    with Virtio9pPci(options, mount_tag="t", memory=memory, interrupts=sink) as device:
        guest = Guest(device, memory)

        def restart(_level: bool) -> None:
            sink.intx = lambda level: None  # type: ignore[method-assign]
            guest.start()
            guest.send(struct.pack("<IBHIH8s", 21, TVERSION, 0xFFFF, 8192, 8, b"9P2000.L"))

        sink.intx = restart  # type: ignore[assignment, method-assign]  # the interrupt controller runs the guest's handler at once
        guest.send(b"")
        assert device.bar_read(4, 20, 1) == 15
        assert guest.used == 1


def test_removed_ram_is_let_go(options: str, sink: Sink) -> None:
    array = np.zeros(1 << 20, np.uint8)
    alone = sys.getrefcount(array)
    memory = GuestMemory.from_array(array)
    with Virtio9pPci(options, mount_tag="t", memory=memory, interrupts=sink) as device:
        guest = Guest(device, memory)
        guest.mount()
        assert guest.status(0) == 0
        memory.remove(0, 1 << 20)
        gc.collect()
        assert sys.getrefcount(array) == alone


def test_a_fault_while_a_request_waits(waiting: tuple[Guest, Waiting]) -> None:
    guest, slow = waiting
    guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF))
    guest.send(b"", slot=1)
    assert guest.device.bar_read(4, 20, 1) & 64
    used = guest.used
    slow.release()
    assert guest.device.run_pending() == 0
    assert guest.used == used
    guest.start()
    guest.mount()


@pytest.mark.parametrize(
    ("option", "value"),
    [("mount_tag", 7), ("mount_tag", None), ("memory", b""), ("memory", None), ("export", None), ("export", b"local")],
)
def test_arguments_of_a_wrong_type(options: str, memory: GuestMemory, option: str, value: object) -> None:
    arguments: dict[str, Any] = {"export": options, "mount_tag": "t", "memory": memory, option: value}
    with pytest.raises(ConfigError, match=rf"^{option}: .*{type(value).__name__}"):
        Virtio9pPci(**arguments)


def test_close_releases_everything(options: str, memory: GuestMemory) -> None:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        device = Virtio9pPci(options, mount_tag="t", memory=memory)
        guest = Guest(device, memory)
        guest.mount()
        device.close()
        device.close()
        guest.send(struct.pack("<IBH", 7, TGETATTR, 1))
        assert guest.used == 2
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_close_leaves_the_callers_driver_open(options: str, memory: GuestMemory) -> None:
    driver = registry.create(options)
    for _ in range(2):
        with Virtio9pPci(driver, mount_tag="t", memory=memory) as device:
            Guest(device, memory).mount()
    driver.close()


def test_trace(options: str, memory: GuestMemory) -> None:
    lines: list[str] = []
    with Virtio9pPci(options, mount_tag="t", memory=memory, trace=lines.append) as device:
        Guest(device, memory).mount()
    assert len(lines) == 4
    assert "Tversion" in lines[0]


def test_public_names() -> None:
    for name in pyvirtfs.__all__:
        assert getattr(pyvirtfs, name) is not None
    assert sorted(pyvirtfs.__all__) == list(pyvirtfs.__all__)


def test_importing_changes_nothing_of_the_process() -> None:
    code = (
        "import os, signal, resource, threading; u = os.umask(0o22); r = resource.getrlimit(7); "
        "s = signal.getsignal(2); import pyvirtfs; "
        "print(os.umask(0) == 0o22, resource.getrlimit(7) == r, signal.getsignal(2) is s, threading.active_count())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["True", "True", "True", "1"]


def test_ctrl_c_while_a_late_answer_is_taken(waiting: tuple[Guest, Waiting], monkeypatch: pytest.MonkeyPatch) -> None:
    guest, slow = waiting
    guest.call(TGETATTR, struct.pack("<IQ", 0, 0x7FF), tag=3)

    def interrupted(_answer: object) -> None:
        raise KeyboardInterrupt

    slow.release()
    with monkeypatch.context() as patch:
        patch.setattr(Completion, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            guest.device.run_pending()
    assert guest.memory.read(REPLY, 11) == struct.pack("<IBHI", 11, 7, 3, 5)  # EIO
    assert guest.device.server.busy == 0
    assert guest.status(0) == 0
    guest.start()
    guest.mount()
