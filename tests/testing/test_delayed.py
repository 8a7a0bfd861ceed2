from __future__ import annotations

import errno
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev import registry
from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.testing import DelayedDriver
from pyvirtfs.testing.descriptors import open_descriptors


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[ExportDriver[Any, Any]]:
    (tmp_path / "file").write_text("x")
    driver = registry.create(f"local,path={tmp_path},security_model=none")
    yield driver
    driver.close()


def delayed(inner: ExportDriver[Any, Any], *names: str, **options: Any) -> tuple[DelayedDriver[Any, Any], Any]:
    driver = DelayedDriver(inner, set(names), **options)
    attached = driver.attach(b"", 0)
    assert not isinstance(attached, Completion)
    return driver, attached[0]


def test_every_method_is_handed_on() -> None:
    def methods(kind: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(member)
            for name, member in vars(kind).items()
            if inspect.isfunction(member) and not name.startswith("_")
        }

    ours, contract = methods(DelayedDriver), methods(ExportDriver)
    assert {name: signature for name, signature in ours.items() if name in contract} == contract


def test_only_what_is_named_waits(inner: ExportDriver[Any, Any]) -> None:
    driver, node = delayed(inner, "statfs")
    assert not isinstance(driver.getattr(node), Completion)
    answer = driver.statfs(node)
    assert isinstance(answer, Completion)
    assert not answer.done
    assert [held.method for held in driver.waiting()] == ["statfs"]
    assert driver.release_all() == 1
    assert answer.result().bsize > 0
    assert driver.held == []
    driver.release(node)


def test_errors_arrive_later_too(inner: ExportDriver[Any, Any]) -> None:
    driver, node = delayed(inner, "walk", "readlink")
    walk, link = driver.walk(node, [b"none"]), driver.readlink(node)
    assert isinstance(walk, Completion)
    assert isinstance(link, Completion)
    driver.held[1].fail(errno.EIO)
    driver.release_reversed()
    with pytest.raises(FileNotFoundError):
        walk.result()
    with pytest.raises(OSError, match="Input/output"):
        link.result()
    driver.release(node)


@pytest.mark.parametrize("ignore", [False, True])
def test_cancelling(inner: ExportDriver[Any, Any], ignore: bool) -> None:
    driver, node = delayed(inner, "statfs", ignore_cancel=ignore)
    answer = driver.statfs(node)
    assert isinstance(answer, Completion)
    answer.cancel()
    assert driver.held[0].cancelled
    assert answer.done != ignore
    driver.release_all()
    if ignore:
        assert answer.result().bsize > 0
    else:
        with pytest.raises(InterruptedError):
            answer.result()
    driver.release(node)


def test_released_by_a_thread(inner: ExportDriver[Any, Any]) -> None:
    driver, node = delayed(inner, "statfs", after=0.01)
    arrived = threading.Event()
    answer = driver.statfs(node)
    assert isinstance(answer, Completion)
    answer.on_done(lambda _: arrived.set())
    assert arrived.wait(5)
    driver.release(node)


def test_closing_ends_what_waits(inner: ExportDriver[Any, Any]) -> None:
    driver, node = delayed(inner, "statfs", after=100)
    answer = driver.statfs(node)
    assert isinstance(answer, Completion)
    driver.close()
    with pytest.raises(InterruptedError):
        answer.result()


def test_a_file_is_closed_even_if_nobody_waits(inner: ExportDriver[Any, Any]) -> None:
    driver, root = delayed(inner, "close_file")
    walked = driver.walk(root, [b"file"])
    assert not isinstance(walked, Completion)
    for end in ("cancel", "fail"):
        opened = driver.open(walked.node, 0, 0)
        assert not isinstance(opened, Completion)
        before = open_descriptors()
        answer = driver.close_file(opened[0])
        assert isinstance(answer, Completion)
        if end == "cancel":
            answer.cancel()
        else:
            driver.held[-1].fail(errno.EIO)
        with pytest.raises(OSError, match="Errno"):
            answer.result()
        assert len(open_descriptors()) == len(before) - 1
    driver.release(walked.node)
    driver.release(root)
