from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci.config import Capability, CapabilityList, ConfigSpace

ANY_INT = st.one_of(st.integers(-5, 300), st.integers(-(1 << 70), 1 << 70))


@pytest.mark.parametrize(("offset", "size"), [(1, 2), (3, 2), (2, 4), (1, 4), (255, 2), (254, 4), (256, 1), (-1, 1)])
def test_misaligned_and_outside_accesses_reach_nobody(offset: int, size: int) -> None:
    config = ConfigSpace()
    config.declare(0, bytes(256), b"\xff" * 256)
    before = bytes(config.data)
    assert config.read(offset, size) == (1 << 8 * size) - 1
    assert config.write(offset, size, 0x5A5A5A5A) is False
    assert bytes(config.data) == before


@pytest.mark.parametrize("size", [-4, 0, 3, 5, 8, 1 << 40])
def test_other_sizes_reach_nobody(size: int) -> None:
    config = ConfigSpace()
    config.declare(0, bytes(8), b"\xff" * 8)
    assert config.read(0, size) == ((1 << 8 * size) - 1 if 1 <= size <= 8 else 0)
    assert config.write(0, size, 1) is False
    assert not any(config.data)


def test_values_wider_than_the_access_are_cut() -> None:
    config = ConfigSpace()
    config.declare(0, bytes(4), b"\xff" * 4)
    config.write(0, 1, 0x1234)
    config.write(2, 2, -1)
    assert config.read(0, 4) == 0xFFFF0034


def test_write_one_clears() -> None:
    config = ConfigSpace()
    config.declare(6, b"\xff\xff", write_one_clears=b"\x00\xf9")
    config.write(6, 2, 0x0100)
    assert config.read(6, 2) == 0xFEFF
    config.write(4, 4, 0xFFFFFFFF)
    assert config.read(6, 2) == 0x06FF
    config.reset()
    assert config.read(6, 2) == 0xFFFF


def test_declare_checks_the_embedder() -> None:
    config = ConfigSpace()
    with pytest.raises(ValueError, match="do not fit"):
        config.declare(250, bytes(8))
    with pytest.raises(ValueError, match="do not fit"):
        config.declare(0, bytes(2), bytes(3))


@given(
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=4, max_size=4),
    st.lists(st.tuples(st.sampled_from([(0, 1), (1, 1), (3, 1), (0, 2), (2, 2), (0, 4)]), st.integers(0, 1 << 32))),
)
def test_each_bit_follows_its_rule(image: bytes, writable: bytes, clears: bytes, writes: list) -> None:  # type: ignore[type-arg]  # hypothesis gives the shape
    config = ConfigSpace()
    config.declare(0, image, writable, clears)
    model = [(image[bit // 8] >> bit % 8) & 1 for bit in range(32)]
    for (offset, size), value in writes:
        config.write(offset, size, value)
        for bit in range(8 * size):
            at = 8 * offset + bit
            written = value >> bit & 1
            if writable[at // 8] >> at % 8 & 1:
                model[at] = written
            if clears[at // 8] >> at % 8 & 1 and written:
                model[at] = 0
    assert config.read(0, 4) == sum(bit << at for at, bit in enumerate(model))


class ConfigMachine(RuleBasedStateMachine):
    """Whatever a guest does: no exception, no change of a read-only bit, no write of a bit that nobody declared."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ConfigSpace()
        self.config.declare(0, bytes(range(64)), bytes([0xF0] * 64))
        self.config.declare(0x40, b"\xff" * 16, b"", b"\x0f" * 16)

    @rule(offset=ANY_INT, size=st.one_of(st.sampled_from([1, 2, 4]), ANY_INT), value=ANY_INT)
    def write(self, offset: int, size: int, value: int) -> None:
        self.config.write(offset, size, value)

    @rule(offset=ANY_INT, size=st.one_of(st.sampled_from([1, 2, 4]), ANY_INT))
    def read(self, offset: int, size: int) -> None:
        assert self.config.read(offset, size) >= 0

    @rule()
    def reset(self) -> None:
        self.config.reset()
        assert self.config.data == self.config.initial

    @invariant()
    def read_only_bits_stay(self) -> None:
        for now, first, writable, clears in zip(
            self.config.data, self.config.initial, self.config.writable, self.config.write_one_clears, strict=True
        ):
            assert (now ^ first) & ~(writable | clears) == 0
        assert len(self.config.data) == 256


ConfigMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestConfigMachine = ConfigMachine.TestCase


def test_capabilities_are_placed_upwards_and_linked_from_the_last() -> None:
    config = ConfigSpace()
    capabilities = CapabilityList(config)
    offsets = [capabilities.add(Capability(bytes([9, 0x77]) + bytes(nbytes - 2))) for nbytes in (16, 5, 2, 20)]
    assert offsets == [0x40, 0x50, 0x58, 0x5C]
    assert config.read(0x34, 1) == 0x5C
    assert config.read(6, 2) & 0x10
    assert [config.read(offset + 1, 1) for offset in offsets] == [0, 0x40, 0x50, 0x58]
    config.reset()
    assert config.read(0x34, 1) == 0x5C


def test_the_list_cannot_be_broken_by_a_mask() -> None:
    config = ConfigSpace()
    capability = Capability(b"\x09\x00\x04\x05", writable=b"\xff" * 4, write_one_clears=b"\xff" * 3)
    CapabilityList(config).add(capability)
    config.write(0x40, 4, 0xA5A5A5A5)
    assert config.read(0x40, 4) == 0xA5000009  # byte 2 is written, then cleared where a one was written


def test_capabilities_fill_configuration_space() -> None:
    capabilities = CapabilityList(ConfigSpace(4096))
    for _ in range(3):
        capabilities.add(Capability(b"\x09\x00" + bytes(62)))
    with pytest.raises(ConfigError, match="no room for 2 bytes"):
        capabilities.add(Capability(b"\x09\x00"))


def test_a_capability_reads_and_writes_itself() -> None:
    config = ConfigSpace()
    capability = Capability(b"\x09\x00\x00\x00\x01\x02\x03\x04", writable=bytes(4) + b"\x01")
    with pytest.raises(RuntimeError):
        capability.load(4, 1)
    CapabilityList(config).add(capability)
    assert (capability.offset, capability.nbytes) == (0x40, 8)
    assert capability.load(4, 4) == 0x04030201
    capability.store(6, 2, 0xBEEF)
    assert config.read(0x46, 2) == 0xBEEF


@pytest.mark.parametrize(("image", "writable"), [(b"", b""), (b"\x09", b""), (b"\x09\x00", b"\0\0\0")])
def test_a_capability_has_a_header_and_fitting_masks(image: bytes, writable: bytes) -> None:
    with pytest.raises(ValueError, match="at least"):
        Capability(image, writable=writable)
