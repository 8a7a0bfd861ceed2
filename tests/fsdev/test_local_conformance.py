"""The conformance suite of drivers on the local driver, in each of its models and on each file system at hand."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.security import MODELS
from pyvirtfs.testing import check_driver
from pyvirtfs.testing.conformance import Check, Factory, driver_checks


@pytest.fixture
def exports(place: Path) -> Callable[..., Factory]:
    """Makes factories of exports of fresh folders."""
    numbers = itertools.count()

    def factory(model: str) -> Factory:
        def make() -> LocalDriver:
            folder = place / f"export {next(numbers)}"
            folder.mkdir()
            return LocalDriver(folder, model)

        return make

    return factory


@pytest.mark.parametrize("check", driver_checks(), ids=str)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_conformance(exports: Callable[..., Factory], model: str, check: Check) -> None:
    if model == "passthrough" and os.geteuid():
        pytest.skip("only root can give files to others")
    check(exports(model))


def test_a_readonly_export(root: Path) -> None:
    (root / "folder" / "below").mkdir(parents=True)
    (root / "folder" / "file").write_bytes(b"content" * 1000)
    (root / "link").symlink_to("folder/file")
    os.link(root / "folder" / "file", root / "another name")
    os.mkfifo(root / "fifo")
    report = check_driver(lambda: LocalDriver(root, readonly=True))
    assert {name for name in report.passed if name.startswith("tree.")} == {
        check.name for check in driver_checks() if check.name.startswith("tree.")
    }
    assert set(report.skipped.values()) == {"the export is read-only"}
