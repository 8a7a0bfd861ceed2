"""The examples in docs/ run, and print what is written below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLE = re.compile(r"<!-- run -->\n```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
EXAMPLES = [
    pytest.param(*found, id=f"{path.stem}-{number}")
    for path in sorted(DOCS.glob("*.md"))
    for number, found in enumerate(EXAMPLE.findall(path.read_text()), 1)
]


@pytest.mark.parametrize(("source", "printed"), EXAMPLES)
def test_examples_print_what_is_below_them(source: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", source], check=False, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


def test_no_example_is_overlooked() -> None:
    assert sum(path.read_text().count("<!-- run -->") for path in DOCS.glob("*.md")) == len(EXAMPLES) > 0
