from __future__ import annotations

from typing import Any

from pyvirtfs.pci import PciFunction, PciIdentity, layout

EXPRESS, PM = 0x40, 0x7C


def test_express_values(express_device: Any) -> None:
    cap = layout.EXPRESS.parse(bytes(express_device.config.data[EXPRESS:]))
    assert (cap.capability_id, cap.next, cap.flags) == (0x10, 0, 2)
    assert cap.device_capabilities == 1 << 28 | 1 << 15 | 1 << 5
    assert (cap.link_capabilities, cap.link_status) == (0x411, 0x0011)


def test_express_writable_bits(express_device: Any) -> None:
    express_device.config_write(EXPRESS + 8, 2, 0x7FFF)
    express_device.config_write(EXPRESS + 0x10, 4, 0xFFFFFFFF)
    express_device.config_write(EXPRESS + 0x28, 4, 0xFFFFFFFF)
    cap = layout.EXPRESS.parse(bytes(express_device.config.data[EXPRESS:]))
    assert (cap.device_control, cap.link_control, cap.device_control_2) == (0x000F, 0x00C0, 0x8000)
    assert (cap.link_status, cap.device_status) == (0x0011, 0)


def test_detected_errors_are_cleared_by_ones(express_device: Any) -> None:
    express_device.config.store(EXPRESS + 0x0A, 2, 0x000F)
    express_device.config_write(EXPRESS + 8, 4, 0x0005_0000)
    assert express_device.config_read(EXPRESS + 0x0A, 2) == 0x000A


def test_function_level_reset(express_device: Any) -> None:
    express_device.config_write(4, 2, 6)
    express_device.config_write(EXPRESS + 8, 4, 0x800F)
    assert express_device.told == ["command", "reset"]
    assert express_device.config_read(EXPRESS + 8, 2) == 0
    assert express_device.config_read(4, 2) == 0


def test_without_function_level_reset() -> None:
    function = PciFunction(PciIdentity(1, 2), express=True, flr=False)
    function.config_write(4, 2, 6)
    function.config_write(EXPRESS + 8, 2, 0x8000)
    assert function.config_read(EXPRESS + 4, 4) == 1 << 15 | 1 << 5
    assert function.config_read(4, 2) == 6
    assert function.config_read(EXPRESS + 8, 2) == 0


def test_power_values(express_device: Any) -> None:
    assert express_device.config_read(PM, 4) == 0x0003_4001
    express_device.config_write(PM, 4, 0)
    express_device.config_write(PM + 4, 4, 0xFFFFFFFC)
    assert express_device.config_read(PM, 4) == 0x0003_4001
    assert express_device.config_read(PM + 4, 4) == 0


def test_d3hot_silences_the_function(express_device: Any, sink: Any) -> None:
    express_device.config_write(0x20, 4, 0xFE000000)
    express_device.config_write(4, 2, 6)
    express_device.set_intx(True)
    express_device.config_write(PM + 4, 2, 3)
    assert express_device.config_read(PM + 4, 2) == 3
    assert express_device.bar_address(4) is None
    assert not express_device.memory_enabled
    assert not express_device.bus_master_enabled
    assert express_device.told == ["command", "command"]
    assert sink.levels == [True, False]
    assert express_device.config_read(4, 2) == 6  # configuration space still answers


def test_return_from_d3hot_resets(express_device: Any) -> None:
    express_device.config_write(4, 2, 6)
    express_device.config_write(PM + 4, 1, 3)
    express_device.config_write(PM + 4, 1, 0)
    assert express_device.told[-1] == "reset"
    assert express_device.config_read(4, 2) == 0
    express_device.config_write(4, 2, 2)
    assert express_device.memory_enabled


def test_states_that_are_not_supported_change_nothing(express_device: Any) -> None:
    for before in (0, 3):
        express_device.config_write(PM + 4, 2, before)
        for state in (1, 2):
            express_device.config_write(PM + 4, 2, state)
            assert express_device.config_read(PM + 4, 2) == before
    assert "reset" not in express_device.told
