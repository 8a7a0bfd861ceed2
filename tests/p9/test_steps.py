"""Procedures: what is answered at once, later, wrongly, or not wanted any more."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.p9.fids import Fid, FidTable
from pyvirtfs.p9.steps import Procedure, Steps, run

if TYPE_CHECKING:
    from collections.abc import Callable

Export = Any


class Log:
    """Calls that were made, and a procedure that adds up what three of them answer."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.made: list[int] = []
        self.caught: list[BaseException] = []
        self.ended = 0

    def call(self, number: int) -> Any:
        self.made.append(number)
        answer = self.answers[number]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def procedure(self) -> Procedure[int]:
        total = 0
        try:
            for number in range(len(self.answers)):
                try:
                    total += yield self.call, number
                except OSError as error:
                    self.caught.append(error)
                    raise
        finally:
            self.ended += 1
        return total


def wake(steps: Steps[Any]) -> list[Any]:
    woken: list[Any] = []
    steps.on_done(woken.append)
    return woken


def test_answers_at_once_make_no_completion() -> None:
    log = Log(1, 2, 3)
    steps = Steps(log.procedure())
    assert not steps.done
    assert steps.go_on()
    assert (steps.result(), log.made, log.ended) == (6, [0, 1, 2], 1)


@pytest.mark.parametrize("late", [{0}, {1}, {2}, {0, 1}, {0, 2}, {0, 1, 2}])
def test_late_answers_are_waited_for_one_by_one(late: set[int]) -> None:
    completions = {number: Completion[int]() for number in late}
    log = Log(*(completions.get(number, 10**number) for number in range(3)))
    steps = Steps(log.procedure())
    assert not steps.go_on()
    woken = wake(steps)
    for count, number in enumerate(sorted(late), 1):
        assert log.made == list(range(number + 1))
        with pytest.raises(RuntimeError, match="no result"):
            steps.result()
        completions[number].set_result(10**number)
        assert woken == [steps] * count, "it is told, and does nothing in the thread that completes"
        assert log.made == list(range(number + 1))
        assert steps.go_on() == (number == max(late))
    assert (steps.result(), log.ended, steps.done) == (111, 1, True)


def test_what_was_complete_already_wakes_at_once() -> None:
    done: Completion[int] = Completion()
    done.set_result(5)
    steps = Steps(Log(done, done).procedure())
    assert not steps.go_on()
    assert wake(steps) == [steps]
    assert steps.go_on()
    with pytest.raises(RuntimeError, match="one receiver"):  # a driver that gives one completion twice
        steps.result()


def test_errors_reach_the_procedure() -> None:
    late: Completion[int] = Completion()
    log = Log(1, late, 3)
    steps = Steps(log.procedure())
    steps.go_on()
    wake(steps)
    late.set_error(OSError(errno.EIO, "late"))
    assert steps.go_on()
    assert log.made == [0, 1]
    assert len(log.caught) == 1
    with pytest.raises(OSError, match="late"):
        steps.result()
    for error in (OSError(errno.EIO, "at once"), ValueError("at once"), KeyboardInterrupt("at once")):
        log = Log(1, error, 3)
        steps = Steps(log.procedure())
        assert steps.go_on()
        with pytest.raises(type(error), match="at once"):
            steps.result()
        assert (log.made, log.ended) == ([0, 1], 1)


def test_after_a_cancel_no_call_is_made() -> None:
    cancelled: list[Any] = []
    late: Completion[int] = Completion(cancelled.append)
    log = Log(late, 2, 3)
    steps = Steps(log.procedure())
    steps.go_on()
    woken = wake(steps)
    steps.cancel()
    assert cancelled == [late]
    assert not woken
    late.set_result(1)
    assert steps.go_on()
    assert log.made == [0], "though the driver did what was cancelled"
    with pytest.raises(InterruptedError):
        steps.result()
    assert log.ended == 1
    steps.cancel()  # too late


def test_the_last_call_counts_although_it_was_cancelled() -> None:
    late: Completion[int] = Completion()
    steps = Steps(Log(late).procedure())
    steps.go_on()
    wake(steps)
    steps.cancel()
    late.set_result(7)
    assert steps.go_on()
    assert steps.result() == 7


def test_a_completion_that_is_somebody_elses_ends_the_procedure() -> None:
    taken: Completion[int] = Completion()
    taken.on_done(lambda _: None)
    log = Log(taken, 2)
    steps = Steps(log.procedure())
    assert not steps.go_on()
    with pytest.raises(RuntimeError, match="one receiver"):
        wake(steps)
    assert log.ended == 1


def test_the_fid_lasts_until_the_end(export: Export, make_fid: Callable[..., tuple[FidTable, Fid]]) -> None:
    fids, fid = make_fid()
    assert run(fids, fid, Log(1, 2).procedure()) == 3
    assert fid.users == 0
    with pytest.raises(OSError, match="no"):
        run(fids, fid, Log(OSError(errno.EIO, "no")).procedure())
    assert fid.users == 0
    late: Completion[int] = Completion()
    steps = run(fids, fid, Log(late).procedure())
    assert isinstance(steps, Steps)
    wake(steps)
    fids.clear()
    assert len(export.nodes) == 1
    late.set_result(4)
    assert len(export.nodes) == 1, "nothing is given back in the thread that completes"
    assert steps.go_on()
    assert not export.nodes


def test_a_session_may_end_in_a_call(export: Export, make_fid: Callable[..., tuple[FidTable, Fid]]) -> None:
    fids, fid = make_fid()

    def procedure() -> Procedure[int]:
        yield (fids.clear,)
        nodes = yield (lambda: len(export.nodes),)
        return int(nodes)

    assert run(fids, fid, procedure()) == 1
    assert not export.nodes


@pytest.fixture
def make_fid(export: Export) -> Callable[..., tuple[FidTable, Fid]]:
    def make() -> tuple[FidTable, Fid]:
        fids = FidTable(export, 10, 100)
        fid = Fid(1, export.attach(b"", 0)[0], 0, True)
        fids.table[1] = fid
        return fids, fid

    return make
