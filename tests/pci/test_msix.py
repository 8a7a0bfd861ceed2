from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci.msix import MsixTable

Message = tuple[int, int, int]


def table_of(vectors: int) -> tuple[MsixTable, list[Message]]:
    sent: list[Message] = []
    return MsixTable(vectors, lambda vector, address, data: sent.append((vector, address, data))), sent


def opened(vectors: int) -> tuple[MsixTable, list[Message]]:
    """A table in use: enabled, every vector with a message of its own and unmasked."""
    table, sent = table_of(vectors)
    for vector in range(vectors):
        table.write(16 * vector, 8, 0x1_FEE0_0000 + 16 * vector)
        table.write(16 * vector + 8, 8, vector + 7)
    table.set_deliverable(True)
    table.set_control(enabled=True, function_masked=False)
    return table, sent


@pytest.mark.parametrize("vectors", [-1, 0, 2049])
def test_impossible_numbers(vectors: int) -> None:
    with pytest.raises(ConfigError, match="vectors"):
        table_of(vectors)


@pytest.mark.parametrize(
    ("vectors", "pba", "nbytes"),
    [
        (1, 0x800, 4096),
        (2, 0x800, 4096),
        (128, 0x800, 4096),
        (129, 2064, 4096),
        (253, 4048, 4096),
        (254, 4064, 4096),
        (255, 4080, 8192),
        (256, 4096, 8192),
        (2048, 32768, 65536),
    ],
)
def test_placement(vectors: int, pba: int, nbytes: int) -> None:
    table, _ = table_of(vectors)
    assert (table.pba_offset, table.nbytes) == (pba, nbytes)
    assert table.read(pba + len(table.pending) - 8, 8) == 0
    assert table.read(16 * (vectors - 1) + 12, 4) == 1


def test_after_reset_all_is_masked_and_empty() -> None:
    table, sent = opened(3)
    table.set_control(enabled=True, function_masked=True)
    table.raise_vector(1)
    table.reset()
    fresh, _ = table_of(3)
    assert table.entries == fresh.entries
    assert not any(table.pending)
    assert not any([table.enabled, table.function_masked, table.deliverable])
    table.raise_vector(0)
    assert not sent


def test_sends_what_the_entry_says() -> None:
    table, sent = opened(3)
    table.raise_vector(2)
    table.raise_vector(0)
    table.raise_vector(2)
    assert sent == [(2, 0x1_FEE0_0020, 9), (0, 0x1_FEE0_0000, 7), (2, 0x1_FEE0_0020, 9)]


def test_a_changed_message_is_used_at_once() -> None:
    table, sent = opened(1)
    table.write(4, 4, 0)
    table.write(0, 4, 0xFEE0_1003)  # the low bits of an address do not exist
    table.write(8, 4, 0x4321)
    table.raise_vector(0)
    assert sent == [(0, 0xFEE0_1000, 0x4321)]


@pytest.mark.parametrize("vector", [-1, 2, 64, 0xFFFF])
def test_vectors_that_are_none(vector: int) -> None:
    table, sent = opened(2)
    table.raise_vector(vector)
    table.set_control(enabled=True, function_masked=True)
    table.raise_vector(vector)
    assert not sent
    assert not any(table.pending)


@given(
    st.integers(-20, 5000),
    st.one_of(st.sampled_from([1, 2, 4, 8]), st.integers(-1, 20)),
    st.integers(-1, 1 << 66),
    st.sampled_from([1, 2, 128, 200]),
)
def test_only_aligned_dwords_and_qwords(offset: int, size: int, value: int, vectors: int) -> None:
    table, _ = table_of(vectors)
    before, pending = bytes(table.entries), bytes(table.pending)
    acceptable = size in {4, 8} and offset >= 0 and offset % size == 0
    if not acceptable:
        assert table.read(offset, size) == 0
    table.write(offset, size, value)
    assert table.pending == pending  # read-only whatever the access
    assert len(table.entries) == len(before)
    if not acceptable or offset >= len(before):
        assert table.entries == before
    else:
        changed = {at for at, (old, new) in enumerate(zip(before, table.entries, strict=True)) if old != new}
        assert changed <= set(range(offset, offset + size))


def test_pending_bits_are_readable() -> None:
    table, _ = opened(130)
    table.set_control(enabled=True, function_masked=True)
    for vector in (0, 63, 64, 129):
        table.raise_vector(vector)
        assert table.is_pending(vector)
    base = table.pba_offset
    assert [table.read(base + offset, 8) for offset in (0, 8, 16)] == [1 | 1 << 63, 1, 2]
    assert table.read(base + 4, 4) == 1 << 31
    table.write(base, 8, 0)
    assert table.read(base, 8) == 1 | 1 << 63


def test_the_receiver_may_mask_the_next_one() -> None:
    sent: list[int] = []

    def receive(vector: int, address: int, data: int) -> None:
        del address, data
        sent.append(vector)
        table.write(16 * 1 + 12, 4, 1)

    table = MsixTable(2, receive)
    for vector in range(2):
        table.write(16 * vector + 12, 4, 0)
    table.set_control(enabled=True, function_masked=True)
    table.raise_vector(0)
    table.raise_vector(1)
    table.set_deliverable(True)
    table.set_control(enabled=True, function_masked=False)
    assert sent == [0]
    assert table.is_pending(1)
    assert table.is_masked(1)
    assert not table.is_masked(0)


class MsixMachine(RuleBasedStateMachine):
    """Against a model of one flag for each vector: nothing is lost, nothing is doubled, nothing comes while masked."""

    @initialize(vectors=st.sampled_from([1, 3, 65]))
    def start(self, vectors: int) -> None:
        self.vectors = vectors
        self.table, self.sent = table_of(vectors)
        self.masked = [True] * vectors
        self.waiting = [False] * vectors
        self.enabled = self.function_masked = self.deliverable = False
        self.expected: list[int] = []

    def open(self, vector: int) -> bool:
        return self.enabled and self.deliverable and not self.function_masked and not self.masked[vector]

    def release(self) -> None:
        for vector in range(self.vectors):
            if self.waiting[vector] and self.open(vector):
                self.waiting[vector] = False
                self.expected.append(vector)

    @rule(vector=st.integers(0, 200))
    def raise_vector(self, vector: int) -> None:
        self.table.raise_vector(vector)
        if vector < self.vectors:
            if self.open(vector):
                self.expected.append(vector)
            elif self.enabled:
                self.waiting[vector] = True

    @rule(vector=st.integers(0, 64), masked=st.booleans(), wide=st.booleans())
    def mask(self, vector: int, masked: bool, wide: bool) -> None:
        vector %= self.vectors
        if wide:
            self.table.write(16 * vector + 8, 8, masked << 32 | 5)
        else:
            self.table.write(16 * vector + 12, 4, masked | 0xFFFFFFFE)
        self.masked[vector] = masked
        self.release()

    @rule(enabled=st.booleans(), function_masked=st.booleans())
    def control(self, enabled: bool, function_masked: bool) -> None:
        self.table.set_control(enabled=enabled, function_masked=function_masked)
        self.enabled, self.function_masked = enabled, function_masked
        self.release()

    @rule(deliverable=st.booleans())
    def bus_master(self, deliverable: bool) -> None:
        self.table.set_deliverable(deliverable)
        self.deliverable = deliverable
        self.release()

    @rule(offset=st.integers(0, 70_000), size=st.sampled_from([1, 2, 4, 8]), value=st.integers(0, 1 << 64))
    def write_pending_bits(self, offset: int, size: int, value: int) -> None:
        self.table.write(self.table.pba_offset + offset, size, value)

    @rule()
    def refresh(self) -> None:
        self.table.refresh()

    @rule()
    def reset(self) -> None:
        self.table.reset()
        self.masked = [True] * self.vectors
        self.waiting = [False] * self.vectors
        self.enabled = self.function_masked = self.deliverable = False

    @invariant()
    def same_as_the_model(self) -> None:
        if not hasattr(self, "table"):
            return
        assert [vector for vector, _, _ in self.sent] == self.expected
        assert [self.table.is_pending(vector) for vector in range(self.vectors)] == self.waiting


MsixMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestMsixMachine = MsixMachine.TestCase
