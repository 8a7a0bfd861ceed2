"""The conformance suite on file systems that hosts have, in each model, with few descriptors and with many."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.security import MODELS
from pyvirtfs.testing import check_driver

IMAGE_NBYTES = 512 << 20  # sparse; XFS needs 300 MiB
MAKERS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount file systems")


def run(*command: str | Path) -> None:
    """A command that succeeds, or the test is skipped."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{command[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


@contextlib.contextmanager
def mounted(name: str, top: Path) -> Iterator[Path]:
    """A fresh file system of that name, as a folder."""
    at = top / "mounted"
    at.mkdir()
    if name == "overlay":
        for folder in ("lower", "upper", "work"):
            (top / folder).mkdir()
        options = ",".join(f"{key}={top / folder}" for key, folder in zip(
            ("lowerdir", "upperdir", "workdir"), ("lower", "upper", "work"), strict=True
        ))  # fmt: skip
        run("mount", "-t", "overlay", "-o", options, "overlay", at)
    else:
        maker = MAKERS[name]
        if shutil.which(maker[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            pytest.skip(f"there is no {maker[0]}")
        with open(top / "image", "wb") as image:
            image.truncate(IMAGE_NBYTES)
        run("env", f"PATH={os.environ.get('PATH', '')}:/usr/sbin:/sbin", *maker, top / "image")
        run("mount", "-o", "loop", top / "image", at)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
        (top / "image").unlink(missing_ok=True)


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs", "overlay"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of a file system of its own."""
    with mounted(request.param, tmp_path_factory.mktemp(request.param)) as at:
        yield at


@pytest.mark.parametrize("budget", [None, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_conformance(host: Path, model: str, budget: int | None) -> None:
    if budget and host.parent.name.startswith("overlay"):
        pytest.skip("on overlayfs everything stays open")
    numbers = itertools.count()
    top = host / "exports"
    top.mkdir()

    def make() -> LocalDriver:
        folder = top / f"{next(numbers)}"
        folder.mkdir()
        return LocalDriver(folder, model, max_descriptors=budget)

    try:
        report = check_driver(make)
    finally:
        shutil.rmtree(top)  # a file system has only so many inodes
    assert len(report.passed) > 100
    assert set(report.skipped.values()) <= {"the export is not read-only", "acls is not offered"}
