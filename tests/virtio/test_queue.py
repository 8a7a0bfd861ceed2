"""What every layout of a virtqueue has in common, with a layout that holds nothing."""

from __future__ import annotations

import dataclasses

import pytest

from pyvirtfs.errors import QueueError
from pyvirtfs.memory import GuestMemory
from pyvirtfs.virtio import Chain, Virtqueue
from pyvirtfs.virtio.queue import QueueState


class Layout(Virtqueue):
    def __init__(self) -> None:
        self.checks = self.unmaps = 0
        self.problem: QueueError | None = None
        super().__init__(3, GuestMemory.anonymous(4096), 16)

    def check(self) -> None:
        self.checks += 1
        if self.problem is not None:
            raise self.problem

    def unmap(self) -> None:
        self.unmaps += 1

    def pop(self) -> Chain | None:
        return None

    def arm(self) -> None: ...

    def push(self, chain: Chain, nbytes: int) -> None: ...

    def needs_interrupt(self) -> bool:
        return False


def test_the_state_is_plain_integers() -> None:
    state = QueueState(8)
    assert all(type(value) is int for value in dataclasses.astuple(state))
    assert (state.size, state.vector, state.enabled, state.signalled_valid) == (8, 0xFFFF, 0, 0)
    assert sum(dataclasses.astuple(state)) == 8 + 0xFFFF


def test_it_is_checked_once_when_it_is_enabled() -> None:
    queue = Layout()
    seen = [queue.enabled]
    queue.enable()
    queue.enable()
    seen.append(queue.enabled)
    assert seen == [False, True]
    assert queue.checks == 1


def test_what_fails_the_check_stays_disabled() -> None:
    queue = Layout()
    queue.problem = QueueError("no")
    with pytest.raises(QueueError):
        queue.enable()
    assert not queue.enabled


def test_a_reset_forgets_everything() -> None:
    queue = Layout()
    queue.enable()
    before, unmaps = queue.state, queue.unmaps
    queue.state.size, queue.state.last_avail, queue.state.vector, queue.pushed = 4, 9, 1, 2
    queue.in_flight[1] = object()  # type: ignore[assignment]  # some chain
    queue.reset()
    assert queue.state is not before
    assert queue.state == QueueState(16)
    assert (queue.in_flight, queue.pushed, queue.enabled, queue.index) == ({}, 0, False, 3)
    assert queue.unmaps == unmaps + 1


def test_features_drop_the_views() -> None:
    queue = Layout()
    unmaps = queue.unmaps
    queue.negotiate(event_idx=True, indirect=True)
    assert queue.unmaps == unmaps + 1
    assert queue._event_idx
    assert queue._reader.indirect
