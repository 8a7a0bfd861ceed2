"""What must hold after every test in this folder, whatever a guest or the host did (see `stack`).

The descriptors of the process are as before; no fid outlives a Tversion, a reset or its Tclunk; no exception has left
the device's entry points, and none that is the device's own was swallowed; the folder next to the export is untouched;
the device works or needs a reset, and works again after one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import ExportDriver

pytest.register_assert_rewrite("tests.hostile.stack")  # its assertions tell what they have compared

from tests.hostile.stack import Place, Stack, running  # noqa: E402

HERE = Path(__file__).parent
SECONDS = 60  # of a test, unless it has a mark of its own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What hangs is a defect, too."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An export, and a sentinel next to it that nothing has touched at the end."""
    found = Place(tmp_path)
    yield found
    found.check()


@pytest.fixture
def start(place: Place) -> Iterator[Callable[..., Stack]]:
    """Starts devices on the export, or on a driver of the test's own; see `running` for the options."""
    with ExitStack() as stacks:

        def begin(export: str | ExportDriver[Any, Any] | None = None, **options: Any) -> Stack:
            return stacks.enter_context(running(place.fsdev if export is None else export, **options))

        yield begin


@pytest.fixture
def stack(start: Callable[..., Stack]) -> Stack:
    """A device on the export, and its guest."""
    return start()
