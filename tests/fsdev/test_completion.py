from __future__ import annotations

import errno
import gc
import threading
import weakref
from typing import Any

import pytest

from pyvirtfs.fsdev.completion import Completion, then


def test_result_before_receiver() -> None:
    completion: Completion[int] = Completion()
    completion.set_result(3)
    seen: list[Completion[int]] = []
    completion.on_done(seen.append)
    assert seen == [completion]
    assert completion.done
    assert completion.result() == 3


def test_error_after_receiver() -> None:
    completion: Completion[int] = Completion()
    seen: list[Completion[int]] = []
    completion.on_done(seen.append)
    assert not seen
    completion.set_error(OSError(errno.EIO, "x"))
    assert seen == [completion]
    with pytest.raises(OSError, match="x"):
        completion.result()


def test_misuse() -> None:
    completion: Completion[None] = Completion()
    with pytest.raises(RuntimeError):
        completion.result()
    completion.on_done(lambda _: None)
    with pytest.raises(RuntimeError):
        completion.on_done(lambda _: None)
    completion.set_result(None)
    with pytest.raises(RuntimeError):
        completion.set_result(None)
    with pytest.raises(RuntimeError):
        completion.set_error(OSError())


def test_cancel_reaches_the_driver_until_done() -> None:
    wishes: list[Completion[int]] = []
    completion: Completion[int] = Completion(wishes.append)
    completion.cancel()
    assert wishes == [completion]
    completion.set_result(1)
    completion.cancel()
    assert wishes == [completion]


def test_exactly_one_call_whoever_is_first() -> None:
    for _ in range(200):
        completion: Completion[int] = Completion()
        seen: list[int] = []
        thread = threading.Thread(target=completion.set_result, args=(5,))
        thread.start()
        completion.on_done(lambda done, seen=seen: seen.append(done.result()))  # type: ignore[misc]  # lambda default
        thread.join()
        assert seen == [5]


@pytest.mark.parametrize("early", [False, True])
def test_who_has_been_told_is_let_go_of(early: bool) -> None:
    """At once: a request that waits keeps the guest's RAM mapped, and often knows its completion."""

    class Receiver:
        def told(self, completion: Completion[int]) -> None:
            self.completion = completion

    completion = Completion[int]()
    receiver = Receiver()
    gone = weakref.ref(receiver)
    if early:
        completion.set_result(1)
    completion.on_done(receiver.told)
    if not early:
        completion.set_result(1)
    assert receiver.completion is completion
    gc.disable()
    try:
        del receiver
        assert gone() is None
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match="one receiver"):
        completion.on_done(print)


def test_then_of_a_value() -> None:
    assert then(3, str) == "3"


def test_then_of_a_promise() -> None:
    cancelled: list[Any] = []
    first: Completion[int] = Completion(cancelled.append)
    second = then(first, str)
    assert isinstance(second, Completion)
    second.cancel()
    assert cancelled == [first]
    first.set_result(3)
    assert second.result() == "3"
    assert then(first_done(4), str).result() == "4"  # type: ignore[union-attr]


def first_done(value: int) -> Completion[int]:
    completion: Completion[int] = Completion()
    completion.set_result(value)
    return completion


def test_then_of_an_error() -> None:
    def refuse(_value: int) -> str:
        raise OSError(errno.EBUSY, "busy")

    first: Completion[int] = Completion()
    second = then(first, str)
    first.set_error(OSError(errno.EIO, "broken"))
    assert isinstance(second, Completion)
    with pytest.raises(OSError, match="broken"):
        second.result()
    third = then(first_done(1), refuse)
    assert isinstance(third, Completion)
    with pytest.raises(OSError, match="busy"):
        third.result()
    with pytest.raises(OSError, match="busy"):
        then(1, refuse)
