"""Feature bits of virtio itself, and the rules of their negotiation (virtio 1.3, 2.2 and 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

INDIRECT_DESC: Final = 28
EVENT_IDX: Final = 29
VERSION_1: Final = 32
ACCESS_PLATFORM: Final = 33
RING_PACKED: Final = 34
IN_ORDER: Final = 35
ORDER_PLATFORM: Final = 36
SR_IOV: Final = 37
NOTIFICATION_DATA: Final = 38
NOTIF_CONFIG_DATA: Final = 39
RING_RESET: Final = 40
ADMIN_VQ: Final = 41

NAMES: Final[Mapping[int, str]] = {
    INDIRECT_DESC: "INDIRECT_DESC",
    EVENT_IDX: "EVENT_IDX",
    VERSION_1: "VERSION_1",
    ACCESS_PLATFORM: "ACCESS_PLATFORM",
    RING_PACKED: "RING_PACKED",
    IN_ORDER: "IN_ORDER",
    ORDER_PLATFORM: "ORDER_PLATFORM",
    SR_IOV: "SR_IOV",
    NOTIFICATION_DATA: "NOTIFICATION_DATA",
    NOTIF_CONFIG_DATA: "NOTIF_CONFIG_DATA",
    RING_RESET: "RING_RESET",
    ADMIN_VQ: "ADMIN_VQ",
}
"""The names of the bits that belong to no device type."""

DEPENDENCIES: Final[Mapping[int, int]] = {
    RING_PACKED: VERSION_1,
    IN_ORDER: VERSION_1,
    NOTIFICATION_DATA: VERSION_1,
    NOTIF_CONFIG_DATA: VERSION_1,
    RING_RESET: VERSION_1,
    ADMIN_VQ: VERSION_1,
}
"""Bit -> the bit without which it may be neither offered nor accepted."""


def mask(*bits: int) -> int:
    """The feature word with these bits set."""
    word = 0
    for bit in bits:
        word |= 1 << bit
    return word


def names(word: int, device_names: Mapping[int, str] | None = None) -> list[str]:
    """The names of the bits of a feature word, lowest first; ``bit N`` for one without a name.

    Args:
        word: Feature bits.
        device_names: Names of the device type's own bits.
    """
    known = {**NAMES, **(device_names or {})}
    return [known.get(bit, f"bit {bit}") for bit in range(word.bit_length()) if word >> bit & 1]


def lacking_dependencies(word: int) -> int:
    """The bits of a feature word whose dependency is not in it; 0 if it is consistent (2.2.2)."""
    return mask(*(bit for bit, needed in DEPENDENCIES.items() if word >> bit & 1 and not word >> needed & 1))


def refusal(driver: int, offered: int, *, required: int = 0) -> str | None:
    """Why a device cannot go on with the features that a driver chose, or None if it can (2.2.2, 3.1.1).

    Args:
        driver: What the driver wrote.
        offered: What the device offers.
        required: What the interface in use cannot do without.
    """
    for problem, word in (
        ("not offered", driver & ~offered),
        ("without what it depends on", lacking_dependencies(driver)),
        ("not accepted but required", required & ~driver),
    ):
        if word:
            return f"{', '.join(names(word))}: {problem}"
    return None
