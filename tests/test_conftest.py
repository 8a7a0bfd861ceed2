"""A failing test tells which messages came before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PREAMBLE = """
import pytest
from pyvirtfs.testing import pair

@pytest.fixture
def stack(tmp_path):
    with pair(f"local,path={tmp_path},security_model=none") as both:
        yield both

@pytest.fixture
def root(stack):
    return stack.mount.root
"""
FIXTURE = "def test_it(root):\n    assert not (root / 'missing').exists()\n"
CONTEXT = """
def test_it(tmp_path):
    with pair(f"local,path={tmp_path},security_model=none") as both:
        (both.mount.root / "missing").exists()
"""


def run(folder: Path, source: str) -> str:
    """What pytest tells about a test module that has our conftest beside it."""
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_it.py").write_text(PREAMBLE + source)
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout


BODIES = {"fixture": (FIXTURE, 4), "context": (CONTEXT, 8)}


@pytest.mark.parametrize(("source", "indent"), BODIES.values(), ids=BODIES)
def test_the_last_messages_of_a_failing_test(tmp_path: Path, source: str, indent: int) -> None:
    told = run(tmp_path, f"{source}{' ' * indent}pytest.fail('as planned')\n")
    assert "1 failed" in told
    _, messages = told.split("9P messages of test_mount")  # once
    assert "Twalk tag=" in messages
    assert '"missing"' in messages
    assert "ecode=2 (ENOENT)" in messages


@pytest.mark.parametrize(("source", "indent"), BODIES.values(), ids=BODIES)
def test_one_that_passes_tells_nothing(tmp_path: Path, source: str, indent: int) -> None:
    told = run(tmp_path, f"{source}{' ' * indent}assert True\n")
    assert "1 passed" in told
    assert "9P messages" not in told
