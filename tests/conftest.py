"""For all tests: processes that they start find the package, and failing ones tell which messages came before."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pyvirtfs
from pyvirtfs.testing import Pair

if TYPE_CHECKING:
    from types import TracebackType


def pytest_configure() -> None:
    """Processes that tests start import the package that is tested here, installed or not."""
    root = str(Path(pyvirtfs.__file__).parents[1])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *others])


def _locals(traceback: TracebackType | None) -> Iterator[Any]:
    while traceback is not None:
        yield from traceback.tb_frame.f_locals.values()
        traceback = traceback.tb_next


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The last messages of each `Pair` that is a fixture of the test or stands in a frame of its traceback."""
    report = yield
    if report.failed and call.excinfo is not None:
        candidates = [*getattr(item, "funcargs", {}).values(), *_locals(call.excinfo.tb)]
        for found in {id(each): each for each in candidates if isinstance(each, Pair)}.values():
            if found.messages:
                report.sections.append((f"9P messages of {found.mount.tag}", "\n".join(found.messages)))
    return report
