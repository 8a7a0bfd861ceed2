"""The text form of configuration space that `lspci -xxx` writes and `lspci -F FILE` reads."""

from __future__ import annotations

import re
from typing import Final

_SLOT: Final = re.compile(r"((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?:\s|$)", re.IGNORECASE)
_LINE: Final = re.compile(r"([0-9a-f]{2,8}):((?: [0-9a-f]{2})+)\s*$", re.IGNORECASE)
_MOST: Final = 4096


def hex_dump(config: bytes, *, slot: str = "00:00.0", title: str = "") -> str:
    """Write configuration space as hexadecimal text.

    Args:
        config: Its bytes: 64 (the form of `lspci -x`), 256 (`-xxx`) or 4096 (`-xxxx`).
        slot: Bus, slot and function, ``bb:ss.f`` or ``dddd:bb:ss.f``.
        title: What stands behind the slot in the first line; readers skip it.

    Returns:
        The lines, with an empty one at the end, so that the dumps of several functions can be put behind each other.
    """
    lines = [f"{slot} {title}".rstrip() if title else f"{slot} "]
    lines += [f"{offset:02x}: {config[offset : offset + 16].hex(' ')}" for offset in range(0, len(config), 16)]
    return "\n".join(lines) + "\n\n"


def parse_hex_dump(text: str) -> dict[str, bytes]:
    """Read what `hex_dump` or `lspci` with any number of ``x`` wrote; other lines are skipped.

    Args:
        text: The dumps of one or more functions.

    Returns:
        By slot, the bytes. Bytes that are missing in the middle are 0.

    Raises:
        ValueError: If a line lies outside 4096 bytes, or bytes stand before the first slot.
    """
    functions: dict[str, bytearray] = {}
    current: bytearray | None = None
    for line in text.splitlines():
        if match := _SLOT.match(line):
            current = functions.setdefault(match[1].lower(), bytearray())
        elif match := _LINE.match(line):
            offset, data = int(match[1], 16), bytes.fromhex(match[2])
            if current is None or offset + len(data) > _MOST:
                raise ValueError(f"a line of a dump that belongs nowhere: {line!r}")
            current.extend(bytes(max(0, offset + len(data) - len(current))))
            current[offset : offset + len(data)] = data
    return {slot: bytes(data) for slot, data in functions.items()}
