from __future__ import annotations

import errno
import inspect
import os
import resource
from pathlib import Path

import pytest

from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import descriptor_budget, fail


@pytest.mark.parametrize("limit", [256, 1024, 1 << 20])
def test_the_program_around_the_driver_keeps_some_descriptors(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    assert limit // 2 <= descriptor_budget() <= limit - 64


def test_without_a_limit_there_is_a_budget_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY,) * 2)
    assert 1024 < descriptor_budget() <= 1 << 20


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOENT])
def test_fail(code: int) -> None:
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        fail(code)
    assert caught.value.errno == code


def test_a_read_only_driver_refuses_by_itself(tmp_path: Path) -> None:
    """The server asks first; a driver that is used without one holds all the same."""
    driver = LocalDriver(tmp_path, "none", readonly=True)
    root, _ = driver.attach(b"", 0)
    for change in (
        lambda: driver.mkdir(root, b"new", 0o755, 0, 0),
        lambda: driver.symlink(root, b"new", b"x", 0, 0),
        lambda: driver.create(root, b"new", os.O_RDWR, 0o644, 0, 0),
    ):
        with pytest.raises(OSError, match="Read-only") as caught:
            change()
        assert caught.value.errno == errno.EROFS
    driver.close()
    assert os.listdir(tmp_path) == []


OPERATIONS = [name for name, value in vars(ExportDriver).items() if callable(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_takes_the_arguments_of_the_interface(name: str) -> None:
    wanted, got = (inspect.signature(getattr(each, name)).parameters for each in (ExportDriver, LocalDriver))
    assert list(got) == list(wanted)
    assert [each.kind for each in got.values()] == [each.kind for each in wanted.values()]
