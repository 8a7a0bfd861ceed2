from __future__ import annotations

from construct import Array, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from pyvirtfs.guest.registers import Field, Registers, fields_of
from pyvirtfs.virtio import layout

BLOCK = Struct("a" / Int8ul, Padding(1), "b" / Int16ul, "c" / Int32ul, "d" / Int64ul, "e" / Array(2, Int8ul))


def test_fields_lie_where_the_declaration_puts_them() -> None:
    assert fields_of(BLOCK) == {
        "a": Field(0, 1),
        "b": Field(2, 2),
        "c": Field(4, 4),
        "d": Field(8, 8),
        "e": Field(16, 2),
    }
    common = fields_of(layout.CommonConfig)  # virtio 1.3, 4.1.4.3
    assert (common["device_status"], common["queue_device"].offset, common["queue_reset"]) == ((20, 1), 48, (58, 2))


def test_one_access_per_field_and_two_for_quadwords() -> None:
    log: list[tuple[int, ...]] = []

    def read(offset: int, size: int) -> int:
        log.append((offset, size))
        return offset

    def write(offset: int, size: int, value: int) -> None:
        log.append((offset, size, value))

    registers = Registers(BLOCK, read, write, base=0x100)
    assert registers.read("b") == 0x102
    assert registers.read("d") == 0x10C << 32 | 0x108
    registers.write("a", 7)
    registers.write("d", 0x1122334455667788)
    assert log == [
        (0x102, 2),
        (0x108, 4),
        (0x10C, 4),
        (0x100, 1, 7),
        (0x108, 4, 0x55667788),
        (0x10C, 4, 0x11223344),
    ]
    assert list(registers.values()) == ["a", "b", "c", "d", "e"]
