"""Fixtures that provision and boot real guests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.realguest.machine import GuestFiles, RealGuest

HERE = Path(__file__).parent
PROVISION = HERE / "provision"
PROVISION_SECONDS = 540
TEST_SECONDS = 600  # of a test, unless it has a mark of its own: the first one also provisions

Boot: TypeAlias = Callable[..., RealGuest]

pytest.register_assert_rewrite("tests.realguest.served")  # its assertions tell what they have compared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guests take their time."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def guest_files() -> GuestFiles:
    """What a guest is booted from, made if need be. Where it cannot be made, tests are skipped, but fail in CI."""
    command = [sys.executable, str(PROVISION)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            made, told = process.communicate(timeout=PROVISION_SECONDS)
            failed = process.returncode != 0
            reason = (told.splitlines() or [f"provision: exit status {process.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            failed, reason = True, f"provision: took longer than {PROVISION_SECONDS} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it runs
    if failed and os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    if failed:
        pytest.skip(reason)
    return GuestFiles.from_json(made)


@pytest.fixture
def boot(guest_files: GuestFiles) -> Iterator[Boot]:
    """Boot a guest: `boot([QEMU's arguments], **options of RealGuest)` returns it ready; it ends with the test."""
    with ExitStack() as stack:

        def boot(*arguments: Any, **options: Any) -> RealGuest:
            return stack.enter_context(RealGuest(guest_files, *arguments, **options))

        yield boot


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is exported to all tests of a module."""
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def guest(guest_files: GuestFiles, share: Path) -> Iterator[RealGuest]:
    """One guest for all tests of a module, each of which mounts the export for itself."""
    from tests.realguest.served import Served  # after its assertions were registered

    with Served(guest_files, {"test_mount": share}) as served:
        yield served.boot()


@pytest.fixture
def folder(share: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A test's own folder in the export."""
    path = share / re.sub(r"\W+", "-", request.node.name).strip("-")
    path.mkdir()
    yield path
    shutil.rmtree(path)
