from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci import Bar, BarKind

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("index", "kind", "nbytes", "prefetchable"),
    [
        (-1, BarKind.IO, 16, False),
        (6, BarKind.IO, 16, False),
        (5, BarKind.MEMORY_64, 16, False),
        (0, BarKind.MEMORY_32, 8, False),
        (0, BarKind.MEMORY_32, 48, False),
        (0, BarKind.MEMORY_32, 1 << 32, False),
        (0, BarKind.IO, 2, False),
        (0, BarKind.IO, 0, False),
        (0, BarKind.IO, 16, True),
    ],
)
def test_impossible_bars(
    index: int, kind: BarKind, nbytes: int, prefetchable: bool, make_registers: Callable[[int], Any]
) -> None:
    with pytest.raises(ConfigError, match=f"BAR {index}"):
        Bar(index, kind, nbytes, make_registers(16), prefetchable=prefetchable)


@pytest.mark.parametrize(
    ("kind", "nbytes", "prefetchable", "image", "mask"),
    [
        (BarKind.IO, 32, False, 0x1, 0xFFFFFFE0),
        (BarKind.MEMORY_32, 4096, False, 0x0, 0xFFFFF000),
        (BarKind.MEMORY_32, 16, True, 0x8, 0xFFFFFFF0),
        (BarKind.MEMORY_64, 0x4000, True, 0xC, 0xFFFFFFFFFFFFC000),
        (BarKind.MEMORY_64, 1 << 33, False, 0x4, 0xFFFFFFFE00000000),
    ],
)
def test_registers(
    kind: BarKind, nbytes: int, prefetchable: bool, image: int, mask: int, make_registers: Callable[[int], Any]
) -> None:
    bar = Bar(0, kind, nbytes, make_registers(16), prefetchable=prefetchable)
    assert bar.registers == (2 if kind is BarKind.MEMORY_64 else 1)
    assert bar.image() == image.to_bytes(4 * bar.registers, "little")
    assert bar.write_mask() == mask.to_bytes(4 * bar.registers, "little")
    assert bar.address(0x4_0000_0000 | image) == 0x4_0000_0000
