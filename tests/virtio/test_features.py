"""Feature words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.virtio import features

WORDS = st.integers(0, (1 << 64) - 1)


def test_names() -> None:
    assert features.names(features.mask(0, 28, 32, 50), {0: "9P_MOUNT_TAG"}) == [
        "9P_MOUNT_TAG",
        "INDIRECT_DESC",
        "VERSION_1",
        "bit 50",
    ]


@given(WORDS)
def test_a_mask_is_made_of_its_bits(word: int) -> None:
    assert features.mask(*(bit for bit in range(64) if word >> bit & 1)) == word


@given(WORDS, WORDS)
def test_refusals(driver: int, offered: int) -> None:
    refusal = features.refusal(driver, offered)
    assert (refusal is None) == (driver & ~offered == 0 and features.lacking_dependencies(driver) == 0)


def test_a_refusal_says_what_and_why() -> None:
    offered = features.mask(features.VERSION_1, features.RING_RESET)
    assert features.refusal(1 << features.RING_PACKED, offered) == "RING_PACKED: not offered"
    assert features.refusal(1 << features.RING_RESET, offered) == "RING_RESET: without what it depends on"
    assert features.refusal(0, offered, required=1 << features.VERSION_1) == "VERSION_1: not accepted but required"
    assert features.refusal(offered, offered, required=1 << features.VERSION_1) is None
