"""The device clauses of virtio 1.3, one test each, in the order of the specification; test_clauses_pci goes on."""

from __future__ import annotations

from typing import Any

import pytest

WRITE, INDIRECT, NEXT = 2, 4, 1
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET = 1 << 28, 1 << 29, 1 << 32, 1 << 40
ALL = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET
NO_EVENT = ALL & ~EVENT_IDX
OPTIONAL_TRANSPORT_BITS = {
    "ACCESS_PLATFORM": 33,
    "RING_PACKED": 34,
    "IN_ORDER": 35,
    "ORDER_PLATFORM": 36,
    "SR_IOV": 37,
    "NOTIFICATION_DATA": 38,
    "NOTIF_CONFIG_DATA": 39,
    "ADMIN_VQ": 41,
}


def request(machine: Any, ring: Any, data: bytes = b"ping", room: int = 64) -> int:
    """One direct chain, made available; its head."""
    machine.memory.write(0x8000, data)
    head: int = ring.add((0x8000, len(data), 0), (0x9000, room, WRITE))
    ring.publish(head)
    return head


# --- 2.1, 2.2: status and features ---


def test_v001_nothing_is_used_before_driver_ok(machine: Any, make_ring: Any) -> None:
    driver = machine.driver
    driver.enable_bus()
    driver.enable_msix()
    driver.negotiate(ALL)
    ring = make_ring(machine.memory, 8)
    driver.program_queue(0, ring)
    driver.set("queue_enable", 1)
    request(machine, ring)
    driver.kick()
    assert ring.used() == []
    assert machine.sink.vectors() == []
    driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    assert len(ring.used()) == 1  # what was available already is processed then
    assert machine.sink.vectors() == [1]


@pytest.mark.parametrize("running", [False, True])
def test_v002_a_fatal_error_needs_a_reset_and_says_so(machine: Any, running: bool) -> None:
    driver = machine.driver
    if running:
        ring = driver.start()
        ring.publish(99)
        driver.kick()
    else:
        driver.enable_bus()
        driver.enable_msix()
        driver.negotiate()
        driver.set("config_msix_vector", 0)
        driver.set("queue_enable", 7)
    assert driver.broken
    assert machine.sink.vectors() == ([0] if running else [])


def test_v003_only_consistent_subsets_are_accepted(machine: Any) -> None:
    driver = machine.driver
    offered = driver.offered()
    assert offered >> 32 & 1  # all others depend on it
    for features, accepted in (
        (offered, True),
        (VERSION_1, True),
        (offered & ~RING_RESET, True),
        (RING_RESET, False),
        (0, False),
        (offered | 1 << 34, False),
        (offered | 1 << 63, False),
    ):
        driver.set_status(0)
        driver.set_status(ACKNOWLEDGE | DRIVER)
        driver.write_features(features)
        status = driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert bool(status & FEATURES_OK) is accepted, hex(features)


def test_v003_a_driver_may_try_again_after_a_refusal(machine: Any) -> None:
    driver = machine.driver
    driver.set_status(ACKNOWLEDGE | DRIVER)
    driver.write_features(ALL | 1 << 34)
    assert not driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK
    driver.write_features(ALL)
    assert driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK


def test_v003_a_bit_beyond_the_64th_is_refused(machine: Any) -> None:
    driver = machine.driver
    driver.set_status(ACKNOWLEDGE | DRIVER)
    driver.write_features(ALL)
    driver.set("driver_feature_select", 2)
    driver.set("driver_feature", 1)
    assert driver.get("driver_feature") == 0
    assert not driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK


def test_v004_only_what_is_supported_is_offered(machine: Any) -> None:
    assert machine.driver.offered() == ALL | 1 << 3 | 1 << 5


def test_v005_the_same_features_are_accepted_after_a_reset(machine: Any) -> None:
    for _ in range(3):
        machine.driver.negotiate(ALL & ~INDIRECT_DESC)


def test_v006_status_is_0_after_a_reset(machine: Any) -> None:
    machine.driver.start()
    assert machine.driver.get("device_status") == 15
    assert machine.driver.set_status(0) == 0


def test_v007_quiet_after_a_reset(machine: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    machine.device.hold = True
    request(machine, ring)
    driver.kick()
    driver.set_status(0)
    machine.device.hold = False
    machine.function.run_pending()
    request(machine, ring)
    driver.kick()
    assert ring.used() == []
    assert machine.sink.vectors() == []


def test_v007_an_interrupt_that_waits_behind_a_mask_is_forgotten(machine: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    machine.function.bar_write(1, 16 + 12, 4, 1)
    request(machine, ring)
    driver.kick()
    driver.set_status(0)
    machine.function.bar_write(1, 16 + 12, 4, 0)
    assert machine.sink.vectors() == []


def test_v008_configuration_is_readable_before_features_ok(machine: Any) -> None:
    assert machine.function.bar_read(4, 0x2000, 4) == int.from_bytes(b"echo", "little")


# --- 2.6.1: queue reset ---


def test_v009_nothing_of_a_reset_queue_runs(machine: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    machine.device.hold = True
    request(machine, ring)
    driver.kick()
    driver.set("queue_select", 0)
    driver.set("queue_reset", 1)
    assert machine.device.cancelled  # the device type was told to drop its requests
    request(machine, ring)
    driver.kick()
    machine.device.hold = False
    machine.function.run_pending()
    assert ring.used() == []
    assert machine.sink.vectors() == []
    assert len(machine.device.seen) == 1


def test_v010_queue_reset_restores_the_defaults(machine: Any, make_ring: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    assert [machine.echo(ring) for _ in range(3)]
    driver.set("queue_select", 0)
    driver.set("queue_reset", 1)
    assert [driver.get(name) for name in ("queue_size", "queue_enable", "queue_msix_vector", "queue_desc")] == [
        8, 0, 0xFFFF, 0,
    ]  # fmt: skip
    fresh = make_ring(machine.memory, 8)
    driver.program_queue(0, fresh)
    driver.set("queue_enable", 1)
    assert machine.echo(fresh) == b"olleh"  # indexes start at 0 again
    assert fresh.used_idx == 1


def test_v011_a_queue_comes_back_with_another_size_place_and_vector(machine: Any, make_ring: Any) -> None:
    driver = machine.driver
    driver.start()
    driver.set("queue_select", 0)
    driver.set("queue_reset", 1)
    other = make_ring(machine.memory, 4, base=0x20000)
    driver.program_queue(0, other, vector=0)
    driver.set("queue_enable", 1)
    for _ in range(6):
        assert machine.echo(other) == b"olleh"
        other.next_slot %= 4
    assert set(machine.sink.vectors()) == {0}


# --- 6: reserved features ---


def test_v012_version_1_is_offered_and_required(machine: Any) -> None:
    driver = machine.driver
    assert driver.offered() & VERSION_1
    driver.set_status(ACKNOWLEDGE | DRIVER)
    driver.write_features(INDIRECT_DESC)
    assert not driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK


@pytest.mark.parametrize(
    ("clauses", "name"),
    [
        ("v013 v016", "ACCESS_PLATFORM"),
        ("v014", "IN_ORDER"),
        ("v015 v016", "ORDER_PLATFORM"),
        ("v017", "SR_IOV"),
        ("v036 to v039", "RING_PACKED"),
        ("v059", "ADMIN_VQ"),
        ("v065 to v068", "NOTIFICATION_DATA"),
    ],
)
def test_clauses_of_features_that_are_not_offered(machine: Any, clauses: str, name: str) -> None:
    assert not machine.driver.offered() >> OPTIONAL_TRANSPORT_BITS[name] & 1, clauses


# --- 2.7: split virtqueues ---


@pytest.mark.parametrize("cut", [(1, 4), (5, 1), (2, 2, 1)])
@pytest.mark.parametrize("indirect", [False, True])
def test_v018_any_arrangement_of_descriptors(machine: Any, cut: tuple[int, ...], indirect: bool) -> None:
    ring = machine.driver.start()
    machine.memory.write(0x8000, b"framingx")
    buffers, where = [], 0x8000
    for nbytes in cut:
        buffers.append((where, nbytes, 0))
        where += nbytes
    buffers += [(0x9000, 2, WRITE), (0x9010, 62, WRITE)]
    head = ring.add_indirect(0x7000, *buffers) if indirect else ring.add(*buffers)
    ring.publish(head)
    machine.driver.kick()
    total = sum(cut)
    assert ring.used() == [(head, total)]
    answer = machine.memory.read(0x9000, 2) + machine.memory.read(0x9010, total - 2)
    assert answer == b"framingx"[:total][::-1]


def test_v019_readable_buffers_and_descriptors_stay_as_they_are(machine: Any) -> None:
    ring = machine.driver.start()
    head = ring.add_indirect(0x7000, (0x8000, 5, 0), (0x9000, 64, WRITE))
    machine.memory.write(0x8000, b"hello")
    before = [machine.memory.read(*where) for where in ((0x8000, 4096), (0x7000, 4096), (ring.descriptors, 128))]
    ring.publish(head)
    machine.driver.kick()
    assert ring.used()
    after = [machine.memory.read(*where) for where in ((0x8000, 4096), (0x7000, 4096), (ring.descriptors, 128))]
    assert after == before


def test_v020_the_write_flag_of_an_indirect_descriptor_is_ignored(machine: Any) -> None:
    ring = machine.driver.start()
    machine.memory.write(0x8000, b"hello")
    head = ring.add_indirect(0x7000, (0x8000, 5, 0), (0x9000, 64, WRITE), flags=INDIRECT | WRITE)
    ring.publish(head)
    machine.driver.kick()
    assert ring.used() == [(head, 5)]


def test_v021_direct_descriptors_before_an_indirect_one(machine: Any) -> None:
    ring = machine.driver.start()
    machine.memory.write(0x8000, b"hello")
    nbytes = ring.put_table(0x7000, [(0x8003, 2, NEXT, 1), (0x9000, 64, WRITE, 0)])
    ring.write_descriptor(2, 0x8000, 3, NEXT, 5)
    ring.write_descriptor(5, 0x7000, nbytes, INDIRECT)
    ring.publish(2)
    machine.driver.kick()
    assert ring.used() == [(2, 5)]
    assert machine.memory.read(0x9000, 5) == b"olleh"


def test_v022_without_event_idx_used_event_is_ignored(machine: Any) -> None:
    ring = machine.driver.start(NO_EVENT)
    ring.set_used_event(1000)
    for _ in range(3):
        machine.echo(ring)
        assert machine.sink.vectors() == [1]


def test_v023_without_event_idx_flag_1_stops_interrupts(machine: Any) -> None:
    ring = machine.driver.start(NO_EVENT)
    ring.set_flags(1)
    machine.echo(ring)
    assert machine.sink.vectors() == []


def test_v024_without_event_idx_flag_0_asks_for_interrupts(machine: Any) -> None:
    ring = machine.driver.start(NO_EVENT)
    ring.set_flags(1)
    machine.echo(ring)
    ring.set_flags(0)
    machine.echo(ring)
    assert machine.sink.vectors() == [1]


def test_v025_with_event_idx_the_flag_is_ignored(machine: Any) -> None:
    ring = machine.driver.start()
    ring.set_flags(1)
    for i in range(3):
        ring.set_used_event(i)
        machine.echo(ring)
        assert machine.sink.vectors() == [1]


def test_v026_with_event_idx_an_interrupt_when_used_event_is_passed(machine: Any) -> None:
    ring = machine.driver.start()
    machine.echo(ring)
    machine.sink.vectors()
    ring.set_used_event(3)
    seen = []
    for _ in range(4):
        machine.echo(ring)
        seen.append(machine.sink.vectors())
    assert seen == [[], [], [1], []]  # the entry with index 3 is the fourth


def test_v026_a_batch_that_passes_used_event_interrupts_once(machine: Any) -> None:
    ring = machine.driver.start()
    machine.echo(ring)
    machine.sink.vectors()
    ring.set_used_event(2)
    for _ in range(3):
        request(machine, ring)
    machine.driver.kick()
    assert len(ring.used()) == 3
    assert machine.sink.vectors() == [1]


def test_v027_with_event_idx_no_other_interrupts(machine: Any) -> None:
    ring = machine.driver.start()
    machine.echo(ring)
    machine.sink.vectors()
    for _ in range(6):
        ring.set_used_event(ring.used_idx + 5)
        machine.echo(ring)
    assert machine.sink.vectors() == []


def test_v028_v029_length_and_data_are_there_before_the_index(machine: Any) -> None:
    ring = machine.driver.start()
    looked: list[tuple[Any, bytes]] = []
    machine.sink.on_message = lambda: looked.append((ring.used(), machine.memory.read(0x9000, 4)))
    head = request(machine, ring)
    machine.driver.kick()
    assert looked == [([(head, 4)], b"gnip")]  # test_second_observer looks from another processor


def test_v030_bytes_behind_len_are_left_alone(machine: Any) -> None:
    ring = machine.driver.start()
    machine.memory.write(0x9000, b"\xaa" * 64)
    request(machine, ring)
    machine.driver.kick()
    assert machine.memory.read(0x9000, 64) == b"gnip" + b"\xaa" * 60


@pytest.mark.parametrize(("features", "while_busy"), [(NO_EVENT, 1), (ALL, 0)])
def test_v031_v032_v033_used_flags(machine: Any, features: int, while_busy: int) -> None:
    ring = machine.driver.start(features)
    seen = []
    machine.device.on_request = lambda: seen.append(ring.used_flags)
    machine.echo(ring)
    assert seen == [while_busy]  # no doorbell needed now
    assert ring.used_flags == 0


def test_v034_avail_event_asks_for_the_next_doorbell(machine: Any) -> None:
    ring = machine.driver.start()
    seen = []
    machine.device.on_request = lambda: seen.append(ring.avail_event)
    for i in range(3):
        machine.echo(ring)
        assert ring.avail_event == i + 1
    assert seen == [0, 1, 2]  # not moved while there is work: no doorbells


def test_v035_doorbells_without_work(machine: Any) -> None:
    ring = machine.driver.start()
    for _ in range(10):
        machine.driver.kick()
    assert machine.echo(ring) == b"olleh"
    assert machine.sink.vectors() == [1]
