from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.vmm.qemu_arguments import WITH_VALUE, parse, words
from pyvirtfs.vmm.qemu_devices import TakenDevice, TakenDevices, attachment, split_device, take

FSDEV = "-fsdev local,id=f,path=/srv,security_model=none"
VIRTFS = "-virtfs local,path=/srv,mount_tag=t,security_model=none"


def taken(line: str) -> TakenDevices:
    return take(parse(shlex.split(line)))


def only(line: str) -> TakenDevice:
    (device,) = taken(line).devices
    return device


def attached(line: str) -> str:
    """The command line with sockets named 0, 1, ..., and the new devices by the name of theirs."""
    found = taken(line)
    sockets = [str(number) for number in range(len(found.devices))]
    told = words(found.attached(sockets))
    return " ".join(
        f"vfio-user{json.loads(word)['socket']['path']}" if "vfio-user-pci" in word else word for word in told
    )


def test_the_attachment() -> None:
    text = attachment("/run/a,b.sock", {"addr": "06.0", "multifunction": True})
    assert text == (
        '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/run/a,b.sock"},"addr":"06.0","multifunction":true}'
    )


OPTIONS = st.sampled_from(sorted(WITH_VALUE - {"virtfs", "fsdev", "device", "set", "global"}))
UNRELATED = st.lists(
    st.one_of(
        st.tuples(OPTIONS.map(lambda option: f"-{option}"), st.text()),
        st.tuples(st.just("-device"), st.from_regex(r"[a-z0-8-]{1,9}(,[a-z]{1,4}=[a-z0-9]{0,5}){0,3}", fullmatch=True)),
        st.tuples(st.just("--device"), st.text().filter(lambda text: "9p" not in text)),
        st.tuples(st.sampled_from(["-S", "--snapshot", "-nographic", "-no-such-option", "disk.img", "a b", ""])),
    )
).map(lambda parts: [word for part in parts for word in part])


@given(UNRELATED)
def test_what_has_no_9p_device_stays_as_it_is(line: list[str]) -> None:
    found = take(parse(line))
    assert (words(found.attached([])), found.devices, found.warnings) == (line, [], [])


@given(UNRELATED, UNRELATED)
def test_everything_around_a_9p_device_stays(before: list[str], behind: list[str]) -> None:
    found = take(parse([*before, "-virtfs", "local,path=/srv,mount_tag=t,security_model=none", *behind]))
    made = ["-device", attachment("/s", {})]
    told = words(found.attached(["/s"]))
    at = told.index(made[1])
    assert told[at - 1 : at + 1] == made
    assert told[: at - 1] + told[at + 1 :] == before + behind


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"-m 1G {VIRTFS} -S disk.img", "-m 1G -device vfio-user0 -S disk.img"),
        (f"-m 1G -{VIRTFS} -S", "-m 1G -device vfio-user0 -S"),
        (f"{FSDEV} -device virtio-9p-pci,fsdev=f,mount_tag=t", "-device vfio-user0"),
        (f"-device virtio-9p,fsdev=f,mount_tag=t -{FSDEV}", "-device vfio-user0"),
        (f"{FSDEV} --device virtio-9p-pci-transitional,fsdev=f,mount_tag=t", "-device vfio-user0"),
        (f"{FSDEV} -device mount_tag=t,fsdev=f,driver=virtio-9p-pci-non-transitional", "-device vfio-user0"),
        (f"""{FSDEV} -device '{{"driver":"virtio-9p-pci","fsdev":"f","mount_tag":"t"}}' -s""", "-device vfio-user0 -s"),
        (f"""{FSDEV} -device "{{'driver':'virtio-9p-pci','fsdev':'f'}}" -s""", "-device vfio-user0 -s"),
        # exports that something else uses, or nothing
        (
            f"{FSDEV} -device virtio-9p-device,fsdev=f,mount_tag=t",
            f"{FSDEV} -device virtio-9p-device,fsdev=f,mount_tag=t",
        ),
        (f"{FSDEV} {VIRTFS}", f"{FSDEV} -device vfio-user0"),
        (
            f"{FSDEV} -device virtio-9p-ccw,fsdev=f -device virtio-9p-pci,fsdev=f",
            f"{FSDEV} -device virtio-9p-ccw,fsdev=f -device vfio-user0",
        ),
        # questions are QEMU's to answer
        ("-virtfs help", "-virtfs help"),
        ("-virtfs local,help", "-virtfs local,help"),
        ("-device virtio-9p-pci,help", "-device virtio-9p-pci,help"),
        ("-device help -virtfs", "-device help -virtfs"),
        # what was not JSON comes before what was, since QEMU has it so
        (
            f"""-device '{{"driver":"a"}}' -device b {VIRTFS} -device '{{"driver":"c"}}'""",
            '-device vfio-user0 -device {"driver":"a"} -device b -device {"driver":"c"}',
        ),
        (
            f"""-device b {FSDEV} -device '{{"driver":"virtio-9p-pci","fsdev":"f"}}' {VIRTFS} -s""",
            "-device b -device vfio-user1 -device vfio-user0 -s",
        ),
    ],
)
def test_devices_are_replaced(line: str, told: str) -> None:
    assert attached(line) == told


def test_a_virtfs_is_handed_on_as_written() -> None:
    device = only(VIRTFS)
    assert device == TakenDevice(virtfs="local,path=/srv,mount_tag=t,security_model=none")


def test_a_pair_is_handed_on_without_what_is_qemu_s() -> None:
    device = only(
        f"{FSDEV} -device virtio-9p-pci,fsdev=f,mount_tag=a,,b,vectors=4,"
        "id=x,bus=pci.0,addr=0x6.1,multifunction=on,acpi-index=7"
    )
    assert device.fsdev == "local,id=f,path=/srv,security_model=none"
    assert device.device == "virtio-9p-pci,fsdev=f,mount_tag=a,,b,vectors=4"
    assert device.placement == {"id": "x", "bus": "pci.0", "addr": "0x6.1", "multifunction": True, "acpi-index": 7}
    assert not device.express


def test_json_is_handed_on_as_text() -> None:
    properties = {"driver": "virtio-9p-pci", "fsdev": "f", "mount_tag": "a,b", "vectors": 0, "event_idx": False}
    placement = {"id": "x", "addr": 48, "multifunction": False}
    device = only(f"{FSDEV} -device {shlex.quote(json.dumps({**properties, **placement}))}")
    assert device.device == "virtio-9p-pci,fsdev=f,mount_tag=a,,b,vectors=0,event_idx=off"
    assert device.placement == placement


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("virtio-9p-pci,fsdev=f,addr=5", ("virtio-9p-pci,fsdev=f", {"addr": "5"})),
        ("virtio-9p-pci,fsdev=f", ("virtio-9p-pci,fsdev=f", {})),
        ("help", ("help", {})),
        ("virtio-9p-pci,help", ("virtio-9p-pci,help", {})),
    ],
)
def test_the_two_halves_of_a_device(text: str, told: tuple[str, dict[str, Any]]) -> None:
    assert split_device(text) == told


@pytest.mark.parametrize(
    ("properties", "line"),
    [("multifunction=2", "multifunction: '2' is not a switch"), ("id=1", "id: '1' is not an identifier")],
)
def test_a_bad_place_is_named(properties: str, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        split_device(f"virtio-9p-pci,{properties}")


def test_two_devices_of_one_export() -> None:
    found = taken(f"{FSDEV} -device virtio-9p-pci,fsdev=f,mount_tag=a -device virtio-9p-pci,fsdev=f,mount_tag=b")
    assert [device.fsdev for device in found.devices] == ["local,id=f,path=/srv,security_model=none"] * 2


def test_a_device_of_the_export_of_a_virtfs() -> None:
    found = taken("-device virtio-9p-pci,fsdev=t,mount_tag=b -virtfs local,path=/a,,b,mount_tag=t,security_model=none")
    assert found.devices[0].fsdev == "fsdriver=local,path=/a,,b,security_model=none,id=t"


def test_a_device_without_an_export() -> None:
    assert only("-device virtio-9p-pci,fsdev=x,mount_tag=t").fsdev is None
    assert only("-device virtio-9p-pci,mount_tag=t").fsdev is None


@pytest.mark.parametrize(
    "port", ["-device pcie-root-port,id=rp", """-device '{"driver":"pcie-root-port","id":"rp"}'"""]
)
@pytest.mark.parametrize(("bus", "express"), [(",bus=rp", True), (",bus=other", False), ("", False)])
def test_a_device_behind_a_port(port: str, bus: str, express: bool) -> None:
    assert only(f"{port} {FSDEV} -device virtio-9p-pci,fsdev=f,mount_tag=t{bus}").express is express


LEGACY = "the device has no legacy interface"


@pytest.mark.parametrize(
    ("device", "told", "warned"),
    [
        ("virtio-9p-pci-transitional,fsdev=f", "virtio-9p-pci-non-transitional,fsdev=f", True),
        ("virtio-9p-pci,fsdev=f,disable-legacy=off", "virtio-9p-pci,fsdev=f", True),
        ("virtio-9p-pci,fsdev=f,disable-legacy=on", "virtio-9p-pci,fsdev=f,disable-legacy=on", False),
        ("virtio-9p-pci,fsdev=f,disable-legacy=auto", "virtio-9p-pci,fsdev=f,disable-legacy=auto", False),
        # refused by whoever makes the device
        ("virtio-9p-pci,fsdev=f,disable-modern=on", "virtio-9p-pci,fsdev=f,disable-modern=on", False),
        (
            "virtio-9p-pci-non-transitional,fsdev=f,disable-legacy=off",
            "virtio-9p-pci-non-transitional,fsdev=f,disable-legacy=off",
            False,
        ),
    ],
)
def test_the_legacy_interface_is_missing(device: str, told: str, warned: bool) -> None:
    found = taken(f"{FSDEV} -device {device}")
    assert found.devices[0].device == told
    assert [LEGACY in warning for warning in found.warnings] == [True] * warned


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("-daemonize", "-daemonize: the devices end with this command"),
        ("-set device.x.vectors=4", r"-set: 'device\.x\.vectors=4' is about a 9p device: write it behind -device"),
        ("-set fsdev.f.path=/", r"-set: 'fsdev\.f\.path=/' is about a 9p device: write it behind -fsdev"),
        ("-global virtio-9p-pci.vectors=4", r"-global: 'virtio-9p-pci\.vectors=4' is about 9p devices"),
        ("-global driver=virtio-9p-device,property=packed,value=on", "-global: 'driver=virtio-9p-device,"),
    ],
)
def test_what_cannot_be_kept_is_refused(options: str, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        taken(f"{options} {FSDEV} -device virtio-9p-pci,fsdev=f,mount_tag=t,id=x")
    assert words(taken(options).attached([])) == options.split()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("-set device.y.vectors=4", None),
        ("-global e1000.romfile=", None),
        ("-global driver=e1000,property=romfile,value=", None),
        ("-global virtio-pci.disable-legacy=on", "-global virtio-pci.disable-legacy=on: not for the 9p devices"),
        ("-readconfig x", "-readconfig x: 9p devices and memory that it describes are not looked at"),
    ],
)
def test_what_may_be_lost_is_told(options: str, line: str | None) -> None:
    warnings = taken(f"{options} {VIRTFS}").warnings
    assert len(warnings) == (line is not None)
    assert line is None or warnings[0].startswith(line)


@pytest.mark.parametrize(
    ("line", "warned"),
    [
        (f"-device e1000 {VIRTFS}", False),
        (f"{VIRTFS} -device e1000", True),
        (f"{VIRTFS} -device e1000,addr=5", False),
        (f"{VIRTFS} -device e1000,bus=bridge", False),
        (f"{VIRTFS} -device usb-tablet -device pc-dimm,memdev=m -device scsi-hd,drive=d", False),
        (f"{VIRTFS} -device usb-ehci", True),
        (f"""{VIRTFS} -device '{{"driver":"e1000"}}'""", False),
        (f"{FSDEV} -device virtio-9p-pci,fsdev=f,addr=6 -device e1000", False),
        (f"{FSDEV} -device virtio-9p-pci,fsdev=f,bus=pci.0 -device e1000,bus=pci.0", True),
        (f"{VIRTFS} {VIRTFS}", False),
        (f"{VIRTFS} -device virtio-9p-ccw", True),
    ],
)
def test_devices_that_move_to_other_slots(line: str, warned: bool) -> None:
    warnings = taken(line).warnings
    assert ["in another PCI slot than without pyvirtfs" in warning for warning in warnings] == [True] * warned


@pytest.mark.parametrize(
    ("line", "told"),
    [("-virtfs local,=x", "-virtfs: an option has no name"), (f"-fsdev local,=x {VIRTFS}", "-fsdev: an option has no")],
)
def test_what_is_no_option_is_named(line: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        taken(line)


def test_a_disk_that_changes_its_slot_is_told() -> None:
    """QEMU makes the disk of -drive if=virtio before the devices that were written as JSON."""
    export = "local,path=/x,mount_tag=t,security_model=none"
    disk = ["-drive", "file=disk,if=virtio"]
    assert "-drive if=virtio in another PCI slot" in take(parse(["-virtfs", export, *disk])).warnings[0]
    assert take(parse([*disk, "-virtfs", export])).warnings == []
