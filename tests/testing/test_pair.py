from __future__ import annotations

from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError, DeviceError
from pyvirtfs.fsdev import registry
from pyvirtfs.guest import DirectMachine, Machine
from pyvirtfs.memory import GuestMemory
from pyvirtfs.testing import check_descriptors, pair


def test_a_pair_has_everything(tmp_path: Path) -> None:
    memory = GuestMemory.anonymous(32 << 20)
    with check_descriptors(), pair(f"local,path={tmp_path},security_model=none", memory=memory) as both:
        assert isinstance(both.guest, Machine)
        assert both.memory is memory
        assert both.mount.tag == "test_mount"
        (both.mount.root / "file").write_text("x")
    assert (tmp_path / "file").read_text() == "x"


def test_without_a_bus(tmp_path: Path) -> None:
    with pair(f"local,path={tmp_path},security_model=none", bus=False, mount_tag="other") as both:
        assert isinstance(both.guest, DirectMachine)
        assert both.mount.tag == "other"
        old = both.mount
        assert both.remount() is both.mount is not old


def test_a_driver_stays_open(tmp_path: Path) -> None:
    driver = registry.create(f"local,path={tmp_path},security_model=none")
    for _ in range(2):
        with pair(driver) as both:
            both.mount.root.stat()
    driver.close()


def test_a_broken_device_does_not_hide_the_error(tmp_path: Path) -> None:
    with check_descriptors():
        with (
            pytest.raises(DeviceError, match="needs a reset"),
            pair(f"local,path={tmp_path},security_model=none") as both,
        ):
            both.channel.wait(both.channel.submit(b"x", 0))
        with pytest.raises(ConfigError), pair("local,path=/nonexistent,security_model=none"):
            pass


def test_the_last_messages_are_kept(tmp_path: Path) -> None:
    with pair(f"local,path={tmp_path},security_model=none", messages=4) as both:
        for _ in range(3):
            both.mount.root.stat()
        assert len(both.messages) == 4
        assert [line.split()[0] for line in both.messages] == ["Tgetattr", "Rgetattr", "Tclunk", "Rclunk"]
    lines: list[str] = []
    for options in ({"messages": 0}, {"trace": lines.append}):
        with pair(f"local,path={tmp_path},security_model=none", **options) as both:
            assert not both.messages
    assert lines[0].startswith("Tversion")
