from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyvirtfs.cli.devices import (
    DEVICES,
    DeviceCommand,
    DeviceSettings,
    device_list,
    device_options,
    devices_from,
    driver_list,
    only_device,
    option_list,
    property_list,
)
from pyvirtfs.cli.properties import PROPERTIES
from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import registry

EXPORT = "local,id=one,path=/srv,security_model=none"
DEVICE = "virtio-9p-pci,fsdev=one,mount_tag=tag"


@click.command(cls=DeviceCommand)
@click.option("-v", "verbose", count=True)
@device_options
def probe(verbose: int, virtfs: tuple[str, ...], fsdev: tuple[str, ...], device: tuple[str, ...]) -> None:
    """Show what arrived."""
    click.echo(f"{verbose} {virtfs} {fsdev} {device}")


def test_long_options_with_one_dash() -> None:
    arguments = ["-vv", "-virtfs", "local,mount_tag=a", "-fsdev", "b", "-device=virtio-9p-pci,fsdev=b"]
    answer = CliRunner().invoke(probe, arguments)
    assert answer.output == "2 ('local,mount_tag=a',) ('b',) ('virtio-9p-pci,fsdev=b',)\n"
    arguments = ["-vv", "--virtfs", "local,mount_tag=a", "--fsdev", "b", "--device=virtio-9p-pci,fsdev=b"]
    answer = CliRunner().invoke(probe, arguments)
    assert answer.output == "2 ('local,mount_tag=a',) ('b',) ('virtio-9p-pci,fsdev=b',)\n"


@pytest.mark.parametrize("argument", ["-virtf", "-fs", "-x", "--virtf"])
def test_an_unknown_option_is_named_as_it_was_written(argument: str) -> None:
    with pytest.raises(click.NoSuchOption) as caught:
        probe.main(["-v", argument, "x"], standalone_mode=False)
    assert caught.value.option_name == argument


def test_virtfs_is_an_export_and_its_device() -> None:
    (found,) = devices_from(["local,path=/srv,,data,mount_tag=tag,security_model=none"], [], [])
    assert isinstance(found, DeviceSettings)
    assert (found.mount_tag, found.slot, found.function, found.arguments) == ("tag", 6, 0, {})
    assert (found.fsdev.driver, found.fsdev.id) == ("local", "tag")
    assert found.fsdev.values == {"path": "/srv,data", "security_model": "none"}


def test_fsdev_and_device_find_each_other() -> None:
    other = "local,id=two,path=/two,security_model=none"
    found = devices_from(
        [], [EXPORT, other], ["virtio-9p-pci,fsdev=two,mount_tag=b,vectors=0,event_idx=off,addr=1f", DEVICE]
    )
    assert [(one.fsdev.id, one.mount_tag, one.arguments, one.slot, one.function) for one in found] == [
        ("two", "b", {"vectors": 0, "event_idx": False}, 31, 0),
        ("one", "tag", {}, 6, 0),
    ]


def test_devices_without_an_address_take_the_free_slots() -> None:
    found = devices_from(
        [f"local,path=/,security_model=none,mount_tag=t{number}" for number in range(3)],
        [EXPORT],
        [f"{DEVICE},addr=7"],
    )
    assert [one.slot for one in found] == [6, 8, 9, 7]


@pytest.mark.parametrize("name", ["virtio-9p-pci", "virtio-9p", "virtio-9p-pci-non-transitional"])
def test_names_of_the_device(name: str) -> None:
    assert devices_from([], [EXPORT], [f"{name},fsdev=one,mount_tag=tag"])[0].mount_tag == "tag"


@pytest.mark.parametrize(
    ("fsdev", "device", "told"),
    [
        (
            [EXPORT],
            "virtio-9p-pci,fsdev=two,mount_tag=t",
            "fsdev: there is no -fsdev with the id 'two' (choose from one)",
        ),
        ([], DEVICE, "fsdev: there is no -fsdev with the id 'one'"),
        ([EXPORT, EXPORT], DEVICE, "id: two exports have the id 'one'"),
        (["local,path=/"], DEVICE, "id: -fsdev local needs it"),
        ([EXPORT], "virtio-9p-pci,fsdev=one", "mount_tag: virtio-9p-pci needs it"),
        ([EXPORT], "virtio-9p-pci,mount_tag=t", "fsdev: virtio-9p-pci needs it"),
        ([EXPORT], "virtio-net", f"-device: 'virtio-net' is not a device (choose from {', '.join(DEVICES)})"),
        (
            [EXPORT],
            "virtio-9p-ccw",
            "-device: 'virtio-9p-ccw' is known to QEMU but not available here yet (choose from ",
        ),
        (
            [EXPORT],
            f"{DEVICE},colour=red",
            "colour: virtio-9p-pci has no such property (choose from acpi-index, addr, ",
        ),
        (
            [EXPORT],
            f"{DEVICE},disable_legacy=on",
            "disable_legacy: virtio-9p-pci has no such property; did you mean disable-legacy or ",
        ),
        ([EXPORT], f"{DEVICE},packed=on", "packed: 'on' is known to QEMU but not available here yet (choose from off)"),
        ([EXPORT], f"{DEVICE},vectors=x", "vectors: 'x' is not a number"),
        ([EXPORT], f"{DEVICE},addr=20.0", "addr: '20.0' is no slot[.function] (hexadecimal, 00.0 to 1f.7)"),
        ([EXPORT], f"{DEVICE},addr=6.1", "addr: 06.1 would not be found: 06.0 is empty"),
        ([EXPORT], f"{DEVICE},addr=6.8", "addr: '6.8' is no slot[.function]"),
        (
            [EXPORT],
            "virtio-9p-pci-non-transitional,fsdev=one,mount_tag=t,disable-legacy=on",
            "disable-legacy: virtio-9p-pci-non-transitional has no such property",
        ),
    ],
)
def test_mistakes_are_named(fsdev: list[str], device: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devices_from([], fsdev, [device])
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_an_export_without_a_device() -> None:
    with pytest.raises(ConfigError, match=r"^-fsdev: no -device has fsdev=one"):
        devices_from([], [EXPORT], [])


def test_what_every_device_takes() -> None:
    assert devices_from([], [EXPORT], [f"{DEVICE},id=share,bus=pci.0"])[0].slot == 6
    with pytest.raises(ConfigError, match=r"^bus: 'pci.1' is known to QEMU but not available here yet"):
        devices_from([], [EXPORT], [f"{DEVICE},bus=pci.1"])
    assert "bus=" not in property_list("virtio-9p-pci")


def test_two_exports_of_one_id_through_virtfs() -> None:
    with pytest.raises(ConfigError, match="two exports have the id 'one'"):
        devices_from(["local,path=/,security_model=none,mount_tag=t,id=one"], [EXPORT], [])


def test_only_device() -> None:
    assert only_device([], [EXPORT], [DEVICE]).mount_tag == "tag"
    with pytest.raises(ConfigError, match=r"^-virtfs: .* for example -virtfs local,path="):
        only_device([], [], [])
    with pytest.raises(ConfigError, match=r"^-device: there are 2 devices, and this command takes one: leave"):
        only_device([], [EXPORT], [DEVICE, DEVICE])
    with pytest.raises(ConfigError, match=r"^-virtfs and -device: there are 2 devices"):
        only_device(["local,path=/,security_model=none,mount_tag=t"], [EXPORT], [DEVICE])


@pytest.mark.parametrize(("option", "text"), [("-virtfs", "nfs,path=/,mount_tag=t"), ("-fsdev", "nfs,id=one,path=/")])
@pytest.mark.parametrize("wanted", ["", ",help"])
def test_an_unknown_driver_is_the_fault_of_the_option_that_names_it(option: str, text: str, wanted: str) -> None:
    texts = {"-virtfs": [], "-fsdev": [], option: [text + wanted]}
    with pytest.raises(ConfigError, match=rf"^{option}: there is no driver 'nfs' \(choose from .*local"):
        devices_from(texts["-virtfs"], texts["-fsdev"], [DEVICE])


def test_an_empty_mount_tag_is_left_to_the_device() -> None:
    assert devices_from([], [EXPORT], ["virtio-9p-pci,fsdev=one,mount_tag="])[0].mount_tag == ""


def test_a_module_with_a_driver_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_driver.py").write_text(
        "from pyvirtfs.fsdev import registry\n"
        "registry.register('own', registry.lookup('local').factory, summary='Made here')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        answer = CliRunner().invoke(probe, ["--import", "own_driver"])
        assert answer.output == "0 () () ()\n"
        assert "  own        Made here" in driver_list().splitlines()
        assert devices_from(["own,mount_tag=t"], [], [])[0].fsdev.driver == "own"
    finally:
        registry.unregister("own")
        del sys.modules["own_driver"]


def test_the_list_of_devices() -> None:
    lines = device_list().splitlines()
    assert lines[0] == "Storage devices:"
    assert 'name "virtio-9p-pci", bus PCI, alias "virtio-9p"' in lines


def test_the_list_of_properties() -> None:
    lines = property_list("virtio-9p-pci").splitlines()
    assert lines[0] == "virtio-9p-pci options:"
    assert lines[1:] == [known.help() for known in PROPERTIES]
    modern = property_list("virtio-9p-pci-non-transitional")
    assert "  disable-legacy=" not in modern
    assert "event_idx=<bool>" in modern


def test_the_lists_of_drivers_and_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = driver_list().splitlines()
    assert lines[0] == "Drivers:"
    assert "  local      A folder of this machine" in lines
    lines = option_list("local").splitlines()
    assert lines[0] == "local options:"
    assert "  path=<str> - The folder to export (required)" in lines
    monkeypatch.setattr(registry, "names", lambda: ["broken"])
    assert driver_list().splitlines() == ["Drivers:", "  broken     there is no driver 'broken'"]


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [
        ("-device", "help", device_list()),
        ("-device", "?", device_list()),
        ("-device", "virtio-9p-pci,help", property_list("virtio-9p-pci")),
        ("-device", "virtio-9p,?", property_list("virtio-9p-pci")),
        ("-fsdev", "help", driver_list()),
        ("-virtfs", "?", driver_list()),
        ("-fsdev", "local,help", option_list("local")),
        ("-virtfs", "local,path=/,help", option_list("local")),
    ],
)
def test_help_ends_the_command(option: str, text: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"-virtfs": [], "-fsdev": [], "-device": [], option: [text]}
    with pytest.raises(click.exceptions.Exit) as caught:
        devices_from(texts["-virtfs"], texts["-fsdev"], texts["-device"])
    assert caught.value.exit_code == 0
    assert capsys.readouterr().out == f"{told}\n"
