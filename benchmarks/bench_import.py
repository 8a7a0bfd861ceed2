"""What `import pyvirtfs` costs: a whole process, against one that imports only the packages that it rests on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STATEMENTS = {
    "python alone": "pass",
    "numpy and construct": "import numpy, construct",
    "pyvirtfs": "import pyvirtfs",
    "pyvirtfs and the driver local": "import pyvirtfs.fsdev.local",
    "pyvirtfs.testing, with the guest": "import pyvirtfs.testing",
}


@pytest.mark.parametrize("label", STATEMENTS)
def test_import(benchmark: Any, label: str) -> None:
    """From exec to exit; the files are in the page cache, the bytecode is compiled."""
    benchmark.group = "import"
    benchmark.extra_info["floor"] = label == "numpy and construct"
    benchmark.extra_info["label"] = label
    command = [sys.executable, "-c", STATEMENTS[label]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run() -> None:
        subprocess.run(command, env=environment, check=True)

    benchmark.pedantic(run, rounds=10, iterations=1, warmup_rounds=2)
