from __future__ import annotations

import pytest

from pyvirtfs.guest.interrupts import MESSAGE_ADDRESS, Interrupts


def test_messages_reach_their_handlers_when_they_are_delivered() -> None:
    controller, log = Interrupts(), list[str]()
    address, one = controller.allocate(lambda: log.append("one"))
    _, two = controller.allocate(lambda: log.append("two"))
    assert one != two
    controller.message(address, two)
    controller.message(address, one)
    assert log == []
    assert controller.deliver() == 2
    assert log == ["two", "one"]
    assert controller.deliver() == 0
    assert (controller.messages, controller.unclaimed) == (2, 0)


def test_messages_for_nobody_are_counted() -> None:
    controller = Interrupts()
    address, data = controller.allocate(lambda: None)
    controller.release(data)
    controller.message(address, data)
    controller.message(MESSAGE_ADDRESS + 4, data)
    assert controller.deliver() == 0
    assert controller.unclaimed == 2


def test_vectors_run_out() -> None:
    controller = Interrupts()
    vectors = {controller.allocate(lambda: None)[1] for _ in range(224)}
    assert len(vectors) == 224
    with pytest.raises(RuntimeError, match="taken"):
        controller.allocate(lambda: None)


def test_a_line_calls_all_its_handlers_until_it_falls() -> None:
    controller, log = Interrupts(), list[str]()
    pin = controller.pin()
    pin.line.handlers.append(lambda: log.append("not mine"))

    def mine() -> None:
        log.append("mine")
        pin.intx(False)

    pin.line.handlers.append(mine)
    pin.intx(True)
    pin.intx(True)
    assert controller.deliver() == 2
    assert controller.deliver() == 0
    assert log == ["not mine", "mine"]
    assert (pin.line.raised, controller.unclaimed) == (1, 0)


def test_a_line_that_stays_high_is_noticed() -> None:
    controller = Interrupts()
    controller.line(2, True)
    assert controller.deliver() == 0
    assert controller.unclaimed == 1
    controller.line(2, False)
    assert controller.deliver() == controller.unclaimed - 1 == 0


def test_an_interrupt_raised_by_a_handler_is_delivered_too() -> None:
    controller, log = Interrupts(), list[int]()
    address, data = controller.allocate(lambda: log.append(1))
    _, first = controller.allocate(lambda: controller.message(address, data))
    controller.message(address, first)
    assert controller.deliver() == 2
    assert log == [1]
