from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.stream.timers import Timers


def test_the_earliest_first() -> None:
    timers: Timers[str] = Timers()
    assert timers.first() is None
    assert timers.due(1e9) == []
    timers.set("a", 3.0)
    timers.set("b", 1.0)
    timers.set("c", 1.0)
    assert timers.first() == 1.0
    timers.set("b", 5.0)
    timers.set("c", None)
    timers.set("nobody", None)
    assert timers.first() == 3.0
    assert timers.due(2.9) == []
    assert timers.due(3.0) == ["a"]
    assert timers.due(9.0) == ["b"]
    assert timers.first() is None


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(0, 100)), max_size=300), st.floats(0, 100))
def test_as_a_dictionary_would(changes: list[tuple[int, float | None]], now: float) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, float] = {}
    for key, when in changes:
        timers.set(key, when)
        if when is None:
            model.pop(key, None)
        else:
            model[key] = when
        assert timers.first() == min(model.values(), default=None)
    due = timers.due(now)
    assert set(due) == {key for key, when in model.items() if when <= now}
    assert [model[key] for key in due] == sorted(model[key] for key in due)
    assert timers.first() == min((when for when in model.values() if when > now), default=None)
    assert len(timers._heap) <= 64 + 2 * 6


def test_times_that_change_for_ever_take_no_memory() -> None:
    timers: Timers[int] = Timers()
    timers.set(0, 0.0)
    for number in range(10000):
        timers.set(1, float(number))
    assert len(timers._heap) < 100
    assert timers.due(1e9) == [0, 1]
