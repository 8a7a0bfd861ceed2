"""What `import pyvirtfs` loads. Its time is held by benchmarks/bench_import.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pyvirtfs

# Slow to load, or the other side: loaded by those who use them.
NOT_NEEDED = [
    "asyncio", "cffi", "click", "concurrent", "email", "http", "importlib.metadata", "inspect", "multiprocessing",
    "pyvirtfs.cli", "pyvirtfs.fsdev.local", "pyvirtfs.guest", "pyvirtfs.p9.client", "pyvirtfs.p9.frames",
    "pyvirtfs.testing", "rich", "socket", "subprocess", "tempfile", "unittest",
]  # fmt: skip
LOADED = """
import sys
import numpy, construct
before = set(sys.modules)
import pyvirtfs
print(*set(sys.modules) - before)
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that it adds to those of numpy and construct."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", NOT_NEEDED)
def test_modules_that_are_not_loaded(loaded: set[str], name: str) -> None:
    assert not {module for module in loaded if module == name or module.startswith(f"{name}.")}


def test_the_device_is_loaded(loaded: set[str]) -> None:
    """So that the test above looks at the right thing."""
    assert {"pyvirtfs", "pyvirtfs.virtio9p", "pyvirtfs.p9.server", "pyvirtfs.virtio.split"} <= loaded


def test_it_exports_what_it_says() -> None:
    assert sorted(pyvirtfs.__all__) == pyvirtfs.__all__
    assert all(hasattr(pyvirtfs, name) for name in pyvirtfs.__all__)
