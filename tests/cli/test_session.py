from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pyvirtfs.cli.devices import DeviceSettings
from pyvirtfs.cli.session import THROTTLED_TIMEOUT, guest_with
from pyvirtfs.errors import ConfigError, DeviceError
from pyvirtfs.fsdev.options import FsdevOptions
from pyvirtfs.guest.channel import DEFAULT_TIMEOUT


def settings(export: Path, **values: str) -> DeviceSettings:
    fsdev = FsdevOptions("local", None, {"path": str(export), "security_model": "none", **values})
    return DeviceSettings(fsdev=fsdev, mount_tag="tag", slot=9)


def test_step_by_step(export: Path) -> None:
    lines: list[str] = []
    with guest_with(settings(export)) as guest:
        assert str(guest.find().slot) == "00:09.0"
        channel = guest.bring_up()
        assert channel.tag == b"tag"
        with guest.mount(channel, msize=8192) as mounted:
            assert guest.mount_line(mounted) == (
                "tag on /mnt type 9p (rw,relatime,access=client,msize=8192,trans=virtio)"
            )
            guest.set_trace(lines.append)
            (mounted.root / "file").write_text("text")
            guest.set_trace(None)
            before = len(lines)
            assert (export / "file").read_text() == "text"
            assert mounted.root.is_dir()
    assert any(line.startswith("Tlcreate") for line in lines)
    assert len(lines) == before


def test_a_read_only_mount_says_so(export: Path) -> None:
    with guest_with(settings(export, readonly="on")) as guest, guest.mount(guest.bring_up()) as mounted:
        assert "(ro," in guest.mount_line(mounted)


@pytest.mark.parametrize(
    ("values", "timeout"), [({}, DEFAULT_TIMEOUT), ({"throttling.iops-write": "2"}, THROTTLED_TIMEOUT)]
)
def test_a_throttled_export_is_not_taken_for_dead(export: Path, values: dict[str, str], timeout: float) -> None:
    with guest_with(settings(export, **values)) as guest, guest.mount(guest.bring_up()) as mounted:
        assert mounted.session.channel.timeout == timeout
        (mounted.root / "new").write_bytes(b"x")
        (mounted.root / "new").write_bytes(b"y")
    assert (export / "new").read_bytes() == b"y"


def test_nothing_is_left_open(export: Path) -> None:
    descriptors = Path("/proc/self/fd")
    with guest_with(settings(export)) as guest:
        guest.bring_up()
    before = len(list(descriptors.iterdir()))
    with guest_with(settings(export)) as guest, guest.mount(guest.bring_up()) as mounted:
        (mounted.root / "file").touch()
    assert len(list(descriptors.iterdir())) == before


def test_a_mount_tag_that_is_too_long_makes_no_export(export: Path) -> None:
    long = DeviceSettings(fsdev=settings(export / "none").fsdev, mount_tag="x" * 32, slot=6)
    with pytest.raises(ConfigError, match=r"^mount_tag: ") as caught, guest_with(long):
        pass
    assert "31" in str(caught.value)


def test_a_function_that_nobody_finds(export: Path) -> None:
    hidden = DeviceSettings(fsdev=settings(export).fsdev, mount_tag="tag", slot=6, function=1)
    with guest_with(hidden) as guest, pytest.raises(DeviceError, match="no virtio device 9"):
        guest.find()


def test_warnings_look_as_with_all_commands(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with guest_with(settings(export)):
        logging.getLogger("pyvirtfs.fsdev").warning("something is odd")
        logging.getLogger("pyvirtfs.fsdev").info("something is as always")
    assert capsys.readouterr().err == "pyvirtfs: warning: something is odd\n"
